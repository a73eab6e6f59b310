"""What `agentenv run` shows: the header, each reply and tool call as it happens, and the result."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.text import Text

from agentenv.observer import RolloutObserver
from agentenv.run.panels import printable

if TYPE_CHECKING:
    from rich.console import Console

    from agentenv.runner.results import RunResult
    from agentenv.tokens.base import ParsedReply
    from agentenv_tools.schema import ToolCall, ToolResult

_LINE_CHARS = 300
_OUTPUT_LINES = 6


def show_header(console: Console, task: str, model: str, provider: str) -> None:
    """Say what is about to run."""
    for name, value in (("task", task), ("model", model), ("provider", provider)):
        line = Text.assemble((f"{name:9}", "bold"), printable(str(value)))
        console.print(line, soft_wrap=True)


def result_lines(result: RunResult) -> list[Text]:
    """How it ended, how long it took, what it used, and where everything is."""
    verdict = Text("PASS", "bold green") if result.success else Text("FAIL", "bold red")
    lines = [Text.assemble(("[Result] ", "bold"), verdict, f" (reward {result.reward:g})")]
    if result.error:
        lines.append(Text(f"error    {printable(result.error)}"))
    usage = result.usage
    if usage is not None and (usage.prompt_tokens or usage.completion_tokens):
        cost = "" if usage.cost_usd is None else f", ${usage.cost_usd:.4f}"
        lines.append(
            Text(
                f"tokens   {usage.prompt_tokens:,} in ({usage.cached_tokens:,} cached), "
                f"{usage.completion_tokens:,} out{cost}"
            )
        )
    lines.append(Text(f"duration {result.duration:.1f} s"))
    lines.append(Text(f"output   {printable(str(result.output_dir))}"))
    return lines


class ConsoleObserver(RolloutObserver):
    """Prints what happens in a run. Nothing a model or a tool wrote is markup or control."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def reply(self, trajectory_id: str, reply: ParsedReply) -> None:
        """The model's words."""
        if reply.content.strip():
            self._say("[Agent]", "cyan", reply.content.strip())

    def tool_started(self, trajectory_id: str, call: ToolCall) -> None:
        """A call's name and arguments."""
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        self._say("[Tool]", "magenta", f"{call.name} {arguments}")

    def tool_finished(self, trajectory_id: str, call: ToolCall, result: ToolResult) -> None:
        """The first lines of what it gave."""
        text = result.output if result.success else f"{result.error or ''}\n{result.output}"
        lines = text.strip("\n").expandtabs(4).splitlines()
        for line in lines[:_OUTPUT_LINES]:
            self._say("      ", "dim" if result.success else "red", line)
        if len(lines) > _OUTPUT_LINES:
            self._say("      ", "dim", f"... {len(lines) - _OUTPUT_LINES} more lines")

    def verifying(self, trajectory_id: str) -> None:
        """The tests begin."""
        self._say("[Verify]", "yellow", "the agent has ended; its work is judged")

    def _say(self, label: str, style: str, text: str) -> None:
        shown = printable(" ".join(text.split()) if label != "      " else text)
        shown = shown if len(shown) <= _LINE_CHARS else f"{shown[:_LINE_CHARS]}..."
        self._console.print(Text.assemble((f"{label} ", style), shown), soft_wrap=True)
