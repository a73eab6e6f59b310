"""The persistent shell and the terminal of a fake slot: enough of both to test what stands on them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv_backends.requests import ExecRequest, ShellRequest, TmuxRequest
from agentenv_backends.results import (
    Capture,
    ExecResult,
    ExecStatus,
    FailureKind,
    OpFailure,
    Recording,
    RecordingResult,
    ShellResult,
    TerminalEvent,
    TmuxResult,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[[ExecRequest], Awaitable[ExecResult]]


@dataclass(slots=True)
class _Session:
    """One shell or terminal and what it recorded."""

    name: str
    width: int = 120
    height: int = 40
    started: float = 0.0
    pending: list[TerminalEvent] = field(default_factory=list)
    output: str = ""

    def print(self, text: str) -> None:
        shown = text.replace("\n", "\r\n")
        self.output += shown
        at_s = round(asyncio.get_running_loop().time() - self.started, 6)
        self.pending.append(TerminalEvent(at_s, "o", shown))

    def take(self) -> Recording:
        events, self.pending = tuple(self.pending), []
        return Recording(self.name, self.width, self.height, events)


class FakeTerminals:
    """Answers `ShellRequest`, `TmuxRequest` and `RecordingRequest` of one slot.

    The shell knows `cd`, `pwd`, `NAME=value`, `exit` and `hang` (which outlives its interruption); everything else
    is run as in a fresh shell, with `$NAME` filled in. `background TEXT` prints TEXT when the next command runs, and
    into the recording at once. The terminal prints what is typed; a key named `Enter` ends the line.
    """

    def __init__(self) -> None:
        self._shell: _Session | None = None
        self._tmux: _Session | None = None
        self._begun = 0
        self._cwd = "/workspace"
        self._variables: dict[str, str] = {}
        self._late = ""

    def end(self) -> None:
        """Kill both, with what they recorded and nobody asked for."""
        self._shell = self._tmux = None
        self._variables.clear()
        self._cwd, self._late = "/workspace", ""

    def recorded(self) -> RecordingResult:
        """What no result has carried."""
        sessions = [session for session in (self._shell, self._tmux) if session and session.pending]
        return RecordingResult(tuple(session.take() for session in sessions))

    def _begin(self, kind: str, width: int = 120, height: int = 40) -> _Session:
        self._begun += 1
        name = f"{kind}-{self._begun}"
        return _Session(name, width, height, asyncio.get_running_loop().time())

    # --- The shell -------------------------------------------------------------------------------

    async def shell(self, request: ShellRequest, run: Run) -> ShellResult:
        """What a command in the persistent shell does."""
        shell = self._shell = self._shell or self._begin("shell")
        shell.print(f"$ {request.command}\n")
        result = await self._command(request, run)
        late, self._late = self._late, ""
        out = late.encode() + result.stdout.head
        ended = request.command == "hang" or request.command.startswith("exit")
        shell.print((result.stdout.head + result.stderr.head).decode())
        recordings = (shell.take(),)
        if ended:
            self._shell = None
            self._variables.clear()
            self._cwd = "/workspace"
        return ShellResult(
            result.status,
            result.exit_code,
            Capture(out, total_bytes=len(out)),
            result.stderr,
            result.duration_s,
            shell_ended=ended,
            recordings=recordings,
        )

    async def _command(self, request: ShellRequest, run: Run) -> ExecResult:
        word, _, rest = request.command.partition(" ")
        name, assigned, value = request.command.partition("=")
        if word == "hang":
            await asyncio.sleep(request.timeout_s)
            return _said("", ExecStatus.TIMED_OUT, 130)
        if word == "background":
            self._late = f"{rest}\n"
            result = _said("")
            assert self._shell is not None
            self._shell.print(self._late)
            return result
        if word == "pwd":
            return _said(f"{self._cwd}\n")
        if word == "cd":
            self._cwd = rest
            return _said("")
        if assigned and name.isidentifier():
            self._variables[name] = value
            return _said("")
        command = request.command
        for variable, held in self._variables.items():
            command = command.replace(f"${variable}", held)
        return await run(ExecRequest(command, request.timeout_s))

    # --- The terminal ----------------------------------------------------------------------------

    async def tmux(self, request: TmuxRequest) -> TmuxResult | OpFailure:
        """What an action does to the terminal."""
        if request.action == "start":
            return self._start(request)
        terminal = self._tmux
        if terminal is None:
            return OpFailure(FailureKind.NO_SESSION, "there is no terminal; start one first")
        await asyncio.sleep(request.timeout_s if "hang" in request.keys else request.min_wait_s)
        if request.action == "stop":
            self._tmux = None
            return TmuxResult(running=False, recordings=(terminal.take(),))
        if request.action == "send_keys":
            terminal.print("".join("\n" if key == "Enter" else key for key in request.keys))
        waited = request.block or request.min_wait_s > 0 or request.action == "capture"
        output = terminal.output.encode()
        streamed = output[request.offset : request.offset + request.max_bytes]
        streams = request.action == "stream"
        return TmuxResult(
            running=True,
            screen=terminal.output.replace("\r", "").rstrip("\n") if waited else "",
            output=streamed if streams else b"",
            next_offset=request.offset + len(streamed) if streams else 0,
            timed_out=request.block and "hang" in request.keys,
            recordings=(terminal.take(),),
        )

    def _start(self, request: TmuxRequest) -> TmuxResult:
        if self._tmux is None or request.reset:
            self._tmux = self._begin("tmux", request.width, request.height)
        return TmuxResult(running=True, recordings=(self._tmux.take(),))


def _said(text: str, status: ExecStatus = ExecStatus.EXITED, exit_code: int = 0) -> ExecResult:
    data = text.encode()
    nothing = Capture(b"")
    return ExecResult(status, exit_code, Capture(data, total_bytes=len(data)), nothing, 0.0)
