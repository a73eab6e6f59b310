"""What running a task does in its sandbox: commands of ours, files that go in, and files that come out.

Everything here needs a POSIX shell with chmod, rm, mkdir, head, tail and tar in it, and nothing else.
"""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from agentenv.tasks.files import packed
from agentenv_backends.errors import InfrastructureError
from agentenv_backends.requests import ExecRequest, KillRequest
from agentenv_backends.results import ExecResult, ExecStatus, FailureKind, OpFailure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.tasks.files import InputFile
    from agentenv_backends.results import Capture
    from agentenv_tools.executor import ToolExecutor

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""For our own commands: no place where an agent that is not root could have put a program."""
_QUICK_S = 60.0
_OUTPUT_BYTES = 20_000
_CHUNK = 8 << 20
_ABSENT = 44
_MAX_ARCHIVED = 100_000
_REPLACE = """chmod -R u+rwX . 2>/dev/null
for each in ./* ./.[!.]* ./..?*; do
  if [ -e "$each" ] || [ -L "$each" ]; then rm -rf "$each" || exit; fi
done
exec tar -x -z -p -o -f -"""


class SandboxCommandError(InfrastructureError):
    """A command of the framework's own failed in the sandbox."""


class DownloadTooLargeError(Exception):
    """What was to be fetched is larger than may be."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    exit_code: int
    stdout: Capture
    stderr: Capture
    timed_out: bool
    signaled: bool = False
    """Whether a signal ended its main process."""
    explanation: str = ""
    """Why it did not end by itself; empty where it did."""


class TaskSandbox:
    """One trajectory's slot, held through its executor."""

    def __init__(self, executor: ToolExecutor, trajectory_id: str) -> None:
        self._executor = executor
        self._trajectory_id = trajectory_id

    async def run(
        self,
        command: str,
        *,
        timeout_s: float = _QUICK_S,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        max_output_bytes: int = _OUTPUT_BYTES,
    ) -> Done:
        """Run a command in a fresh shell in the working directory. Nothing it starts outlives it.

        Raises `InfrastructureError`.
        """
        request = ExecRequest(
            command,
            timeout_s=max(1.0, timeout_s),
            env=dict(env or {}),
            stdin=stdin,
            max_output_bytes=max_output_bytes,
        )
        answer = await self._executor.execute_request(self._trajectory_id, request)
        if isinstance(answer, OpFailure):
            raise SandboxCommandError(f"a command could not be started: {answer.message}")
        assert isinstance(answer, ExecResult)
        ended = answer.status in (ExecStatus.EXITED, ExecStatus.SIGNALED)
        return Done(
            exit_code=answer.exit_code,
            stdout=answer.stdout,
            stderr=answer.stderr,
            timed_out=answer.status is ExecStatus.TIMED_OUT,
            signaled=answer.status is ExecStatus.SIGNALED,
            explanation="" if ended else answer.status.value,
        )

    async def run_script(
        self, path: str, *, timeout_s: float, env: Mapping[str, str], max_output_bytes: int
    ) -> Done:
        """Run an uploaded script by its own first line, both its outputs as one. Raises `InfrastructureError`."""
        script = shlex.quote(path)
        return await self.run(
            f"/bin/chmod +x {script} && exec {script} 2>&1",
            timeout_s=timeout_s,
            env=env,
            max_output_bytes=max_output_bytes,
        )

    async def upload(self, files: Sequence[InputFile], target: str) -> None:
        """Put files below an absolute folder, which is made. Raises `InfrastructureError` or `OSError`."""
        command = (
            f"mkdir -p {shlex.quote(target)} && cd {shlex.quote(target)} && exec tar -x -o -f -"
        )
        parts = packed(files)
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            await self._own(command, stdin=part, what=f"files could not be put into {target}")

    async def upload_archive(self, archive: bytes, target: str) -> None:
        """The same for a tar archive. Raises `InfrastructureError`."""
        command = (
            f"mkdir -p {shlex.quote(target)} && cd {shlex.quote(target)} && exec tar -x -o -f -"
        )
        await self._own(command, stdin=archive, what=f"files could not be put into {target}")

    async def empty(self, *folders: str, mode: str = "0700") -> None:
        """Make folders that hold nothing, whatever was at their place. Raises `InfrastructureError`."""
        for folder in folders:
            place = shlex.quote(folder)
            parents = [str(path) for path in reversed(PurePosixPath(folder).parents)][1:]
            links = "; ".join(
                f"[ ! -L {path} ] || rm -f {path}" for path in map(shlex.quote, (*parents, folder))
            )
            await self._own(
                f"{links}; chmod -R u+rwX {place} 2>/dev/null; rm -rf {place} 2>/dev/null; mkdir -p {place} && "
                f'chmod {mode} {place} && [ -z "$(ls -A {place})" ]',
                what=f"{folder} could not be emptied",
            )

    async def read_file(self, path: str, max_bytes: int) -> bytes | None:
        """A regular file's first bytes; None where there is none. Raises `InfrastructureError`."""
        place = shlex.quote(path)
        done = await self.run(
            f"if [ -f {place} ] && [ ! -L {place} ]; then exec head -c {max_bytes} {place}; fi; exit {_ABSENT}",
            env={"PATH": SYSTEM_PATH},
            max_output_bytes=2 * max_bytes,
        )
        if done.exit_code == _ABSENT:
            return None
        if done.exit_code or done.explanation:
            raise SandboxCommandError(f"{path} could not be read: {_said(done)}")
        return done.stdout.head + done.stdout.tail

    async def kind_of(self, path: str) -> str:
        """`file`, `directory`, or empty where there is neither. Raises `InfrastructureError`."""
        place = shlex.quote(path)
        done = await self.run(
            f"if [ -d {place} ]; then echo directory; elif [ -f {place} ]; then echo file; fi",
            env={"PATH": SYSTEM_PATH},
        )
        return done.stdout.text().strip()

    async def download(self, path: str, max_bytes: int, exclude: Sequence[str] = ()) -> bytes:
        """A tar archive of a file (by its name) or of what is in a folder, in parts of what one message carries.

        Raises `InfrastructureError`, or `DownloadTooLargeError` above `max_bytes`.
        """
        place = PurePosixPath(path)
        is_folder = await self.kind_of(path) == "directory"
        folder, name = (str(place), ".") if is_folder else (str(place.parent), f"./{place.name}")
        patterns = " ".join(f"--exclude={shlex.quote(pattern)}" for pattern in exclude)
        source = f"cd {shlex.quote(folder)} && tar -c -f - {patterns} -- {shlex.quote(name)}"
        content = bytearray()
        while True:
            done = await self.run(
                f"({source}) | tail -c +{len(content) + 1} | head -c {_CHUNK}",
                env={"PATH": SYSTEM_PATH},
                timeout_s=_QUICK_S,
                max_output_bytes=2 * _CHUNK,
            )
            part = done.stdout.head + done.stdout.tail
            content += part
            if len(content) > max_bytes:
                raise DownloadTooLargeError(f"{path} holds more than {max_bytes} bytes")
            if done.exit_code or done.explanation or not content:
                raise SandboxCommandError(f"{path} could not be fetched: {_said(done)}")
            if len(part) < _CHUNK:
                return bytes(content)

    @property
    def has_slot(self) -> bool:
        """Whether it is held already: anything but a look takes it."""
        return self._executor.holds_slot(self._trajectory_id)

    async def archive(self, max_bytes: int) -> bytes:
        """The working directory as a tar.gz, packed by what runs the sandbox and by no program of its image.

        Raises `InfrastructureError`, or `DownloadTooLargeError` above `max_bytes`.
        """
        answer = await self._executor.archive_artifacts(
            self._trajectory_id, max_bytes=max_bytes, max_entries=_MAX_ARCHIVED
        )
        if isinstance(answer, OpFailure):
            if answer.kind is FailureKind.TOO_LARGE:
                raise DownloadTooLargeError(answer.message)
            raise SandboxCommandError(
                f"the working directory could not be packed: {answer.message}"
            )
        return answer.content

    async def replace_files(self, archive: bytes) -> None:
        """Have the working directory hold what is in a tar.gz, and nothing else. Raises `InfrastructureError`."""
        await self._own(_REPLACE, stdin=archive, what="the working directory could not be filled")

    async def kill_everything(self) -> None:
        """End every process in the sandbox but its own. Raises `InfrastructureError`."""
        answer = await self._executor.execute_request(self._trajectory_id, KillRequest())
        if isinstance(answer, OpFailure):
            raise SandboxCommandError(f"processes could not be killed: {answer.message}")

    async def release(self) -> None:
        """Give the sandbox up. Idempotent."""
        await self._executor.release_trajectory(self._trajectory_id, reset_workspace=True)

    async def _own(self, command: str, *, what: str, stdin: bytes = b"") -> None:
        done = await self.run(command, env={"PATH": SYSTEM_PATH}, stdin=stdin)
        if done.exit_code or done.explanation:
            raise SandboxCommandError(f"{what}: {_said(done)}")


def _said(done: Done) -> str:
    reason = done.explanation or f"exit code {done.exit_code}"
    return f"{reason} {done.stderr.text()[-500:]}".strip()
