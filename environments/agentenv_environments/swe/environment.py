"""The environment: an agent mends a repository, and tests that it has not seen say whether it did."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shlex
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from agentenv import AgentEnv, AgentEnvConfig, APIServerConfig, ConfigError
from agentenv_environments._json_lines import read_json_lines
from agentenv_environments.swe import bundle
from agentenv_environments.swe.repositories import Prepared, RepositoryCache
from agentenv_environments.swe.rows import SweRow
from agentenv_tools.schema import ToolCall
from agentenv_tools.toolsets import build_registry

if TYPE_CHECKING:
    from agentenv import AgentResult
    from agentenv.task import ExecTool
    from agentenv_tools.registry import ToolRegistry
    from agentenv_tools.schema import ToolResult

_VERSION = 1
"""Of everything that makes a workspace."""
_PIECE_BYTES = 66_000
"""What one command carries; base64 makes a third more of it, and Linux takes 128 KiB."""
_KEPT_ROWS = 64
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MARGIN_S = 60.0
_NEW_FOLDER = 'umask 077; exec mktemp -d "${TMPDIR:-/tmp}/agentenv-tests.XXXXXXXXXX"'
_FOLDER = re.compile(r"/[\w./-]+")
_ASK = """\
The working directory is a Git repository. Solve this problem by changing its files.
Tests that you cannot see will judge the result.

{problem}
"""


class SweConfig(AgentEnvConfig):
    """Which repositories and problems, beside what every environment has."""

    rows: Path | None = None
    """JSON Lines file of rows as SWE-bench and SWE-smith have them."""
    repositories: str = ""
    """What is put before each row's `repo`: a folder or an address that ends with a slash."""
    repository_cache: Path = Path("~/.cache/agentenv/repositories")
    """Folder of the bare repositories that all runs share."""
    python: str = "python3"
    """The interpreter in the sandbox that runs the tests, 3.10 or newer: a path, or a name in the system's folders."""
    test_timeout_s: float = Field(default=300.0, gt=0, le=500)
    """How long a row's tests may take; those that have not passed by then have not passed."""
    load_test_plugins: bool = False
    """Let pytest load the plugins that are installed in the sandbox."""
    pytest_arguments: list[str] = Field(default_factory=list)
    """Further arguments of pytest. `addopts` of the repository are left out."""


class Swe(AgentEnv[SweConfig]):
    """Rows of SWE-bench's kind, over and over."""

    name = "swe"
    env_config_cls = SweConfig

    @classmethod
    def config_init(cls) -> tuple[SweConfig, list[APIServerConfig]]:
        """Workspaces set up once for a group, tools for coding, and a vLLM server of this machine."""
        config = SweConfig(
            share_workspace_setup=True,
            max_token_length=32_768,
            agent_max_steps=50,
            enabled_toolsets=["terminal", "coding"],
            seed=0,
        )
        return config, [APIServerConfig(server_type="vllm", base_url="http://localhost:8000/v1")]

    def build_tools(self) -> ToolRegistry:
        """The configured ones, and `terminal`, which the set-up and the tests need."""
        config = self.config
        disabled = [name for name in config.disabled_toolsets if name != "terminal"]
        return build_registry([*config.enabled_toolsets, "terminal"], disabled)

    async def setup_agent_env(self) -> None:
        """Read the rows. Raises `ConfigError`."""
        if self.config.rows is None:
            raise ConfigError("env.rows: name a JSON Lines file of rows as SWE-bench has them")
        rows = await asyncio.to_thread(read_json_lines, self.config.rows, "env.rows", SweRow)
        self._rows = [
            row.model_copy(update={"repo": self.config.repositories + row.repo})
            for row in rows.values()
        ]
        self._cache = RepositoryCache(self.config.repository_cache.expanduser())
        self._prepared: OrderedDict[str, asyncio.Task[Prepared]] = OrderedDict()
        self._tools = await asyncio.to_thread(bundle.tools)
        self.next_row = 0

    async def get_next_item(self) -> SweRow:
        """The next row; after the last one the first again."""
        self.next_row += 1
        return self._rows[(self.next_row - 1) % len(self._rows)]

    def build_task(self, item: SweRow) -> str:
        """The problem."""
        return _ASK.format(problem=item.problem_statement)

    def workspace_key(self, item: SweRow) -> str | None:
        """The tree at the commit is all that a workspace depends on."""
        return f"swe v{_VERSION} {item.repo}@{item.base_commit}"

    async def setup_trajectory_workspace(
        self, item: SweRow, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        """The files of the base commit, as a repository with that one commit."""
        prepared = await self._prepare(item)
        sent = await _send(exec_tool, ".agentenv-workspace", prepared.workspace)
        if sent.success:
            unpack = "tar -xzf .agentenv-workspace --no-same-owner; s=$?; rm -f .agentenv-workspace; exit $s"
            sent = await _run(exec_tool, unpack, 300)
        if not sent.success:
            raise RuntimeError(
                f"{item.instance_id}: the repository could not be unpacked: {sent.error} {sent.output[-500:]}"
            )
        await self._check_sandbox(exec_tool)
        return {}

    async def verify_and_score_trajectory(
        self,
        item: SweRow,
        final_response: str,
        *,
        trajectory_id: str,
        exec_tool: ExecTool,
        agent_result: AgentResult | None = None,
        workspace_meta: dict[str, Any] | None = None,
    ) -> tuple[float, dict[str, Any]]:
        """1.0 if every test of FAIL_TO_PASS and PASS_TO_PASS passes, else 0.0; the metadata tells which did not."""
        prepared = await self._prepare(item)
        said = await self._judge(exec_tool, prepared)
        others: dict[str, str] = said.get("others", {})
        solved = said.get("problem") is None and said.get("passed") == len(item.nodes)
        metadata = {
            "instance_id": item.instance_id,
            "passed": said.get("passed", 0),
            "tests": len(item.nodes),
            "problem": said.get("problem"),
            "FAIL_TO_PASS": {node: others[node] for node in item.FAIL_TO_PASS if node in others},
            "PASS_TO_PASS": {node: others[node] for node in item.PASS_TO_PASS if node in others},
            "log": said.get("log", ""),
        }
        return float(solved), metadata

    async def score_trajectory(self, item: SweRow, final_response: str) -> float:
        """Never called: tests judge, not words."""
        raise AssertionError("a row is judged by its tests")

    async def cleanup(self) -> None:
        """Wait for no repository any more."""
        for task in self._prepared.values():
            task.cancel()
        await asyncio.gather(*self._prepared.values(), return_exceptions=True)

    def checkpoint_state(self) -> dict[str, Any]:
        """Which row comes next."""
        return {"next_row": self.next_row}

    async def _check_sandbox(self, exec_tool: ExecTool) -> None:
        """Refuse a sandbox in which no tests could run, before an agent is blamed for it."""
        old = "import sys; sys.exit(sys.version_info < (3, 10))"
        python = f"{shlex.quote(self.config.python)} -I -S -c {shlex.quote(old)}"
        ready = await _run(exec_tool, f'd=$({_NEW_FOLDER}) && rmdir "$d" && {python}', 60)
        if not ready.success:
            raise RuntimeError(
                f"the sandbox cannot run tests: it needs a folder for temporary files, and {self.config.python!r} "
                f"to be Python 3.10 or newer (env.python): {ready.error} {ready.output[-300:]}"
            )

    async def _judge(self, exec_tool: ExecTool, prepared: Prepared) -> dict[str, Any]:
        """What supervise.py prints. What the agent left may be in its way: that is no failure of the sandbox's."""
        made = await _run(exec_tool, _NEW_FOLDER, 30)
        folder = made.output.strip()
        if not made.success or not _FOLDER.fullmatch(folder):
            return {"problem": f"there is no room for the tests: {made.error} {made.output[-300:]}"}
        parts = {
            "supervise.py": bundle.supervisor(),
            "tools.tar.gz": self._tools,
            "hidden.tar.gz": prepared.hidden,
        }
        for name, content in parts.items():
            sent = await _send(exec_tool, f"{folder}/{name}", content)
            if not sent.success:
                return {
                    "problem": f"the tests could not be placed: {sent.error} {sent.output[-300:]}"
                }
        python = shlex.quote(self.config.python)
        command = (
            f"exec /usr/bin/env -i PATH={_PATH} LANG=C.UTF-8 "
            f'{python} -I -S {folder}/supervise.py {folder} "$PWD"'
        )
        result = await _run(exec_tool, command, self.config.test_timeout_s + _MARGIN_S)
        return _said(result)

    async def _prepare(self, row: SweRow) -> Prepared:
        """A row's archives: made once, for all who ask, and kept while few others are asked for."""
        key = row.model_dump_json()
        task = self._prepared.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            config = self.config
            settings = {
                "timeout_s": config.test_timeout_s,
                "load_plugins": config.load_test_plugins,
                "arguments": config.pytest_arguments,
            }
            task = asyncio.create_task(asyncio.to_thread(self._cache.prepare, row, settings))
            self._prepared[key] = task
        self._prepared.move_to_end(key)
        while len(self._prepared) > _KEPT_ROWS and next(iter(self._prepared.values())).done():
            self._prepared.popitem(last=False)
        return await asyncio.shield(task)


def _said(result: ToolResult) -> dict[str, Any]:
    """The one line that the supervisor prints; anything else beside it makes it void."""
    line, _, rest = result.output.partition("\n")
    if not result.success or (rest and not result.metadata.get("killed_processes")):
        return {
            "problem": f"the tests did not end as they should: {result.error} {result.output[-300:]}"
        }
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"problem": f"no outcome but {line[:300]!r}"}


async def _send(exec_tool: ExecTool, path: str, content: bytes) -> ToolResult:
    """Write a new file by commands, piece by piece."""
    target = shlex.quote(path)
    result = await _run(exec_tool, f"rm -rf {target}; : > {target}", 60)
    for start in range(0, len(content), _PIECE_BYTES):
        if not result.success:
            break
        piece = base64.b64encode(content[start : start + _PIECE_BYTES]).decode()
        result = await _run(exec_tool, f"printf %s {piece} | base64 -d >> {target}", 60)
    return result


async def _run(exec_tool: ExecTool, command: str, timeout_s: float) -> ToolResult:
    call = {"command": f"export PATH={_PATH}; {command}", "timeout": int(timeout_s)}
    return await exec_tool(ToolCall("terminal", call))
