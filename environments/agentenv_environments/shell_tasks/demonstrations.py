"""Demonstrations of shell tasks: plans carried out for real, right only part of the time."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentenv_backends.results import Capture, ExecResult, ExecStatus
from agentenv_environments.shell_tasks.tasks import SEEN, Plan, Task, make_task
from agentenv_tools.sandbox_tools import command_result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentenv_tools.schema import ToolResult

_COMMAND_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A task, the commands someone ran for it with their results, and the answer."""

    instruction: str
    commands: tuple[str, ...]
    results: tuple[ToolResult, ...]
    answer: str


def demonstrations(count: int, *, right_share: float, seed: int) -> Iterator[Demonstration]:
    """Demonstrations of the training tasks 0 to `count`, each right with probability `right_share`.

    Deterministic. What the commands print is formatted as the `terminal` tool does it.
    """
    dice = random.Random(f"demonstrations:{seed}")  # noqa: S311 - demonstrations, not secrets
    for index in range(count):
        task = make_task("train", index)
        right = dice.random() < right_share
        yield demonstrate(task, task.solution if right else dice.choice(task.slips))


def demonstrate(task: Task, plan: Plan) -> Demonstration:
    """Carry out a plan in a temporary folder. The commands are our own, so they need no sandbox."""
    with tempfile.TemporaryDirectory(prefix="agentenv-demonstration-") as folder:
        root = Path(folder)
        _set_up(task, root)
        results = tuple(_run(command, root) for command in plan.commands)
    seen = results[-1].output.strip() if results else ""
    return Demonstration(task.instruction, plan.commands, results, plan.answer.replace(SEEN, seen))


def replies(commands: Iterable[str], answer: str) -> list[str]:
    """What an agent writes that runs these commands one after the other and then answers."""
    calls = ({"name": "terminal", "arguments": {"command": command}} for command in commands)
    texts = [json.dumps(call, ensure_ascii=False) for call in calls]
    return [*(f"<tool_call>\n{text}\n</tool_call>" for text in texts), answer]


def _set_up(task: Task, root: Path) -> None:
    for folder in task.before.folders:
        (root / folder).mkdir()
    for name, content in task.before.files.items():
        (root / name).write_text(content)


def _run(command: str, folder: Path) -> ToolResult:
    done = subprocess.run(  # noqa: S603 - see demonstrate
        ["/bin/sh", "-c", command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_COMMAND_TIMEOUT_S,
        check=False,
    )
    ran = ExecResult(
        status=ExecStatus.EXITED,
        exit_code=done.returncode,
        stdout=Capture(done.stdout, total_bytes=len(done.stdout)),
        stderr=Capture(done.stderr, total_bytes=len(done.stderr)),
        duration_s=0.0,
    )
    return command_result(ran, _COMMAND_TIMEOUT_S)
