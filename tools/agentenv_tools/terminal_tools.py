"""The tools that keep state between calls: `terminal_stateful`, a persistent shell, and `tmux`, a terminal.

What runs in them lives until it ends, its trajectory does, or its work is verified. `terminal` and `bash` neither see
it nor end it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from agentenv_backends.requests import (
    DEFAULT_MAX_OUTPUT_BYTES,
    Request,
    ShellRequest,
    TmuxRequest,
)
from agentenv_backends.results import (
    ExecResult,
    ExecStatus,
    OpFailure,
    ShellResult,
    TmuxResult,
)
from agentenv_tools.arguments import ToolArguments
from agentenv_tools.base import SandboxTool, expect
from agentenv_tools.sandbox_tools import BashArguments, command_result, join_lines
from agentenv_tools.schema import ToolResult

if TYPE_CHECKING:
    from agentenv_backends.results import Result

MAX_KEYS = 1_000
MAX_KEY_CHARS = 20_000
MAX_STREAM_BYTES = 1_000_000
_SHORTEST_S = 0.1
_LOST = (
    "its variables, working directory and background jobs are lost (files stay); the next command "
    "starts a new one"
)
_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # cursor, colours, modes
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, clipboard and other strings
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f]"
)


class TerminalStatefulArguments(BashArguments):
    """Arguments of `terminal_stateful`."""

    timeout: Annotated[int | None, Field(description="Seconds the command may take.", ge=1)] = None


class TerminalStatefulTool(SandboxTool[TerminalStatefulArguments]):
    """A command in the slot's persistent shell."""

    name = "terminal_stateful"
    description = (
        "Run a shell command in a persistent shell: the working directory, variables, functions and "
        "background jobs stay for the next call. A command that overruns its timeout is interrupted "
        "as by Ctrl-C. Use tmux for programs that need a terminal."
    )
    arguments_model = TerminalStatefulArguments
    backend_needs: ClassVar[tuple[str, ...]] = ("stateful_terminals",)

    def request(self, arguments: TerminalStatefulArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return ShellRequest(command=arguments.command, timeout_s=timeout_s)

    def result(
        self, arguments: TerminalStatefulArguments, result: Result, timeout_s: float
    ) -> ToolResult:
        """As `terminal`'s, and what became of the shell where that is not obvious."""
        answer = expect(result, ShellResult)
        if isinstance(answer, OpFailure):
            return ToolResult(success=False, error=answer.message)
        return shell_result(answer, timeout_s)


def shell_result(result: ShellResult, timeout_s: float) -> ToolResult:
    """What the model reads of a command in the persistent shell."""
    plain = command_result(
        ExecResult(
            result.status, result.exit_code, result.stdout, result.stderr, result.duration_s
        ),
        timeout_s,
    )
    metadata = {**plain.metadata, "shell_ended": True} if result.shell_ended else plain.metadata
    if result.status is ExecStatus.TIMED_OUT:
        meaning = (
            f"it did not end when interrupted, so the shell was killed: {_LOST}"
            if result.shell_ended
            else "it was interrupted, and the shell goes on as it was"
        )
        return replace(plain, error=f"{plain.error}: {meaning}", metadata=metadata)
    if not result.shell_ended:
        return plain
    notice = f"[the shell has ended: {_LOST}]"
    return replace(plain, output=join_lines([plain.output, notice]), metadata=metadata)


class TmuxArguments(ToolArguments):
    """Arguments of `tmux`."""

    action: Annotated[
        Literal["start", "send_keys", "stream", "stop", "capture"],
        Field(
            description="start: open the terminal. send_keys: type. capture: the screen as text. "
            "stream: what was printed since `offset`. stop: close the terminal."
        ),
    ]
    keys: Annotated[
        str | list[str] | None,
        Field(
            description="For send_keys: text to type, or key names such as Enter, C-c, Escape, Up. "
            "A command needs an Enter of its own, as in ['ls', 'Enter']."
        ),
    ] = None
    block: Annotated[
        bool, Field(description="For send_keys: wait until the command that was typed has ended.")
    ] = False
    min_wait_s: Annotated[
        float, Field(description="Seconds to wait before the screen is read.", ge=0, le=600)
    ] = 0.0
    max_wait_s: Annotated[
        float | None, Field(description="Seconds the call may take, with block.", ge=0, le=600)
    ] = None
    offset: Annotated[
        int, Field(description="For stream: next_offset of the last stream; 0: the start.", ge=0)
    ] = 0
    max_bytes: Annotated[
        int | None, Field(description="For stream: the most bytes to return.", ge=1)
    ] = None
    reset: Annotated[
        bool, Field(description="For start: close a terminal that is open, and begin anew.")
    ] = False
    pane_width: Annotated[
        int, Field(description="For start: columns of the terminal.", ge=20, le=500)
    ] = 120
    pane_height: Annotated[
        int, Field(description="For start: lines of the terminal.", ge=10, le=200)
    ] = 40
    capture_entire: Annotated[
        bool, Field(description="Deprecated; for capture: with all that has scrolled away.")
    ] = False

    @model_validator(mode="after")
    def _keys_are_for_send_keys(self) -> Self:
        if self.action == "send_keys" and not self.typed:
            raise ValueError("keys: required for send_keys")
        if len(self.typed) > MAX_KEYS or sum(map(len, self.typed)) > MAX_KEY_CHARS:
            raise ValueError(
                f"keys: at most {MAX_KEYS} keys of {MAX_KEY_CHARS} characters together"
            )
        return self

    @property
    def typed(self) -> tuple[str, ...]:
        """The keys as a sequence, empty ones left out."""
        keys = [self.keys] if isinstance(self.keys, str) else self.keys or []
        return tuple(key for key in keys if key)


class TmuxTool(SandboxTool[TmuxArguments]):
    """One terminal per trajectory, driven by keys and read as a screen."""

    name = "tmux"
    description = (
        "Drive a terminal, for programs that need one (editors, pagers, REPLs, debuggers): start it, "
        "send_keys, capture the screen. It stays open between calls."
    )
    arguments_model = TmuxArguments
    backend_needs: ClassVar[tuple[str, ...]] = ("stateful_terminals", "tmux")

    def asked_s(self, arguments: TmuxArguments) -> float | None:
        """See `SandboxTool.asked_s`: `max_wait_s`, or a longer `min_wait_s`."""
        asked = max(arguments.max_wait_s or 0.0, arguments.min_wait_s)
        return asked or None

    def request(self, arguments: TmuxArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`. `timeout_s` bounds the whole call, both waits included."""
        longest = timeout_s if arguments.max_wait_s is None else arguments.max_wait_s
        limit = min(max(longest, arguments.min_wait_s, _SHORTEST_S), timeout_s)
        return TmuxRequest(
            action=arguments.action,
            keys=arguments.typed,
            block=arguments.block,
            min_wait_s=min(arguments.min_wait_s, limit),
            timeout_s=limit,
            offset=arguments.offset,
            max_bytes=min(arguments.max_bytes or DEFAULT_MAX_OUTPUT_BYTES, MAX_STREAM_BYTES),
            reset=arguments.reset,
            width=arguments.pane_width,
            height=arguments.pane_height,
            history=arguments.capture_entire,
        )

    def result(self, arguments: TmuxArguments, result: Result, timeout_s: float) -> ToolResult:
        """The screen, or what `stream` found; then, in brackets, what the screen does not show."""
        answer = expect(result, TmuxResult)
        if isinstance(answer, OpFailure):
            return ToolResult(success=False, error=answer.message)
        if arguments.action == "stream":
            return _streamed(answer, arguments)
        metadata: dict[str, Any] = {"running": answer.running}
        if answer.timed_out:
            metadata["timed_out"] = True
        said = [answer.screen, *_notices(arguments, answer)]
        return ToolResult(
            success=True, output=join_lines([part for part in said if part]), metadata=metadata
        )


def _notices(arguments: TmuxArguments, answer: TmuxResult) -> list[str]:
    if arguments.action == "stop":
        return ["[the terminal is closed]"]
    if not answer.running:
        return ["[the terminal has ended; open another with the action start]"]
    if answer.timed_out:
        return ["[still running; nothing was interrupted: wait again, or send C-c]"]
    if answer.screen:
        return []
    return {
        "start": [f"[the terminal is open, {arguments.pane_width}x{arguments.pane_height}]"],
        "send_keys": ["[keys sent]"],
        "capture": ["[the screen is empty]"],
    }[arguments.action]


def _streamed(answer: TmuxResult, arguments: TmuxArguments) -> ToolResult:
    """The whole lines of what was printed, as plain text; an unfinished one comes with a later `stream`."""
    offset, most = arguments.offset, arguments.max_bytes or DEFAULT_MAX_OUTPUT_BYTES
    end = answer.output.rfind(b"\n") + 1
    if not answer.running or (end == 0 and len(answer.output) >= min(most, MAX_STREAM_BYTES)):
        end = len(answer.output)  # nothing will finish this line, or it is longer than may be asked
    whole = answer.output[:end]
    start = answer.next_offset - len(answer.output)
    metadata: dict[str, Any] = {"running": answer.running, "next_offset": start + len(whole)}
    if start > offset:
        metadata["dropped_bytes"] = start - offset
    return ToolResult(success=True, output=plain_text(whole), metadata=metadata)


def plain_text(output: bytes) -> str:
    """What a terminal was sent, without its control sequences. Lines that were redrawn stay one after the other."""
    return _CONTROLS.sub("", output.decode("utf-8", "replace").replace("\r\n", "\n"))
