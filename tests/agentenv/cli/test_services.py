"""`agentenv tool-server` and `agentenv executor`, as processes and as functions."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentenv.cli.main import main
from agentenv.cli.services import load_tools
from agentenv.errors import ConfigError
from tests.processes import alive, descendants
from tests.waiting import WITHIN_S

ROOT = Path(__file__).parents[3]
TOOLS = '''
import asyncio
from agentenv import tool
from agentenv_tools import ToolRegistry

@tool
async def greet(name: str) -> str:
    """Greet."""
    return f"hello {name}"

@tool
async def slow(seconds: float) -> str:
    """Take a while."""
    await asyncio.sleep(seconds)
    return "done"

ALL = [greet, slow]
REGISTRY = ToolRegistry(ALL)
def make():
    return ALL
NONE = "nothing"
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "served_tools.py").write_text(TOOLS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "served_tools", raising=False)
    return tmp_path


@contextmanager
def running(folder: Path, *arguments: str, **environment: str) -> Iterator[tuple[str, Any]]:
    """A command as a process of its own, once it says where it serves."""
    paths = [str(ROOT / part) for part in ("", "backends", "tools", "environments")]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AGENTENV_")}
    with subprocess.Popen(
        [sys.executable, "-m", "agentenv", *arguments, "--port", "0"],
        cwd=folder,
        env={**clean, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "300", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://[\d.]+:\d+", line)
            assert found, (line, process.stderr.read() if process.stderr else "")
            yield found[0], process
        finally:
            process.kill()


def ask(url: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=WITHIN_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize("name", ["ALL", "REGISTRY", "make", "greet"])
def test_tools_are_found_however_they_are_kept(folder: Path, name: str):
    tools = load_tools(f"served_tools:{name}")
    assert [tool.schema.name for tool in tools][:1] == ["greet"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("served_tools", "must have the form package.module:name"),
        ("nowhere:ALL", "no module 'nowhere'"),
        ("served_tools:AL", "has no AL; did you mean ALL"),
        ("served_tools:NONE", "@tool"),
    ],
)
def test_tools_that_cannot_be_found_are_refused_by_name(folder: Path, name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_tools(name)


def test_an_open_address_without_a_token_is_refused_before_anything_starts(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TOOL_SERVER_TOKEN", raising=False)
    assert main(["tool-server", "served_tools:ALL", "--host", "0.0.0.0"]) == 2
    assert "without a token" in capsys.readouterr().err
    assert main(["executor", "--host", "0.0.0.0"]) == 2
    assert "without a token" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["tool-server", "served_tools:ALL", "--max-concurrency", "0"], ["executor", "--idle-s", "0"]],
)
def test_a_number_that_cannot_work_is_refused_before_anything_starts(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    assert "=0: must be" in capsys.readouterr().err


def test_a_token_file_that_cannot_be_read_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["tool-server", "served_tools:ALL", "--token-file", "nope"]) == 2
    assert "--token-file nope: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tool-server", "executor"])
def test_help_says_how_to_use_it(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) if command == "tool-server" else _nothing():
        main([command, "--help"])
    shown = capsys.readouterr().out
    for part in ("--host", "--token-file", "_TOKEN", "127.0.0.1"):
        assert part in shown


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@pytest.mark.slow
def test_the_tool_server_serves_and_ends_in_order(folder: Path):
    (folder / "token").write_text("sesame\n")
    with running(folder, "tool-server", "served_tools:ALL", "--token-file", "token") as (
        url,
        process,
    ):
        assert ask(f"{url}/tools")[0] == 401
        call = {"tool": {"name": "greet", "arguments": {"name": "Ada"}}}
        assert ask(f"{url}/execute", call, "sesame")[1]["output"] == "hello Ada"
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 0
        assert process.stderr.read() == ""


@pytest.mark.slow
async def test_a_call_under_way_is_answered_before_the_server_ends(folder: Path):
    with running(folder, "tool-server", "served_tools:ALL") as (url, process):
        call = {"tool": {"name": "slow", "arguments": {"seconds": 1}}}
        answer = asyncio.create_task(asyncio.to_thread(ask, f"{url}/execute", call))
        async with asyncio.timeout(WITHIN_S):
            while (await asyncio.to_thread(ask, url))[1]["calls_under_way"] == 0:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert (await answer)[1]["output"] == "done"
        assert await asyncio.to_thread(process.wait, WITHIN_S) == 0


@pytest.mark.slow
async def test_a_second_signal_ends_calls_at_once(folder: Path):
    command = ["tool-server", "served_tools:ALL", "--stop-grace-s", "3600"]
    with running(folder, *command) as (url, process):
        call = {"tool": {"name": "slow", "arguments": {"seconds": 600}}, "timeout_s": 600}
        quick = {"tool": {"name": "greet", "arguments": {"name": "Ada"}}}
        answer = asyncio.create_task(asyncio.to_thread(ask, f"{url}/execute", call))
        async with asyncio.timeout(WITHIN_S):
            while (await asyncio.to_thread(ask, url))[1]["calls_under_way"] == 0:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WITHIN_S):
            while (await asyncio.to_thread(ask, f"{url}/execute", quick))[0] != 503:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        status, body = await answer
        assert (status, body["error"]["kind"]) == (503, "withdrawn")
        assert await asyncio.to_thread(process.wait, WITHIN_S) == 0


@pytest.mark.sandbox
@pytest.mark.slow
def test_the_executor_serves_sandboxes_and_leaves_none(folder: Path):
    (folder / "config.yaml").write_text("env: {backend: {type: local, slots: 2}}\n")
    with running(folder, "executor", "config.yaml", TOOL_EXECUTOR_TOKEN="sesame") as (url, process):
        sandboxes = descendants(process.pid)
        call = {"name": "terminal", "arguments": {"command": "echo hi; id -u"}}
        body = {"trajectory_id": "t", "tool": call}
        assert ask(f"{url}/execute", body)[0] == 401
        assert ask(f"{url}/execute", body, "sesame")[1]["output"].startswith("hi\n")
        sandboxes |= descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 0
        assert not alive(sandboxes)
