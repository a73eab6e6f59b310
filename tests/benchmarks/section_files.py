"""Finding files and lines by the tools for it, beside `find` and `grep` run as commands in the same slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentenv_tools import ToolCall
from tests.benchmarks.figures import RATE, Effort, Goal, Row, Section
from tests.benchmarks.load import drive, in_turns
from tests.benchmarks.local import local

if TYPE_CHECKING:
    from typing import Any

    from tests.benchmarks.figures import Load
    from tests.benchmarks.load import Measurement
    from tests.benchmarks.local import Sandboxes

_MAKE_TREE = """python3 -c '
import os, random
draw = random.Random(1)
words = [bytes(draw.choices(b"abcdefghijklmnopqrstuvwxyz_", k=draw.randint(2, 9))) for _ in range(3000)]
lines = [b" ".join(draw.choices(words, k=draw.randint(1, 9))) + b"\\n" for _ in range(20000)]
for number in range(%d):
    folder = "repo/%%d/%%d" %% (number %% 20, number %% 7)
    os.makedirs(folder, exist_ok=True)
    with open("%%s/f%%d.%%s" %% (folder, number, "py" if number %% 4 else "txt"), "wb") as file:
        text = b"".join(draw.choices(lines, k=290))
        file.write(text + b"return needle_%%d(x)\\n" %% number if number %% 50 == 0 else text)
'"""
_KIB_A_FILE = 10
_CASES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("*.py by name", "glob", {"pattern": "*.py"}, "find repo -name '*.py' | sort | head -1000"),
    (
        "below a folder",
        "glob",
        {"pattern": "repo/3/**/*.py"},
        "find repo/3 -name '*.py' | sort | head -1000",
    ),
    ("a word", "grep", {"pattern": "needle_"}, "grep -rn -m 100 needle_ repo | head -100"),
    (
        "a regular expression",
        "grep",
        {"pattern": r"needle_\d+\("},
        r"grep -rnE 'needle_[0-9]+\(' repo | head -100",
    ),
    (
        "one without a fixed text",
        "grep",
        {"pattern": r"\d\d"},
        "grep -rn '[0-9][0-9]' repo | head -100",
    ),
)


async def run(effort: Effort) -> Section:
    """Both ways in turns, one trajectory; the tree is warm in memory for both."""
    files = effort.workspace_files
    rows: list[Row] = []
    goals: list[Goal] = []
    async with local(1, toolsets=("default", "coding")) as run:
        await run.shell(0, _MAKE_TREE % files)
        for label, tool, arguments, command in _CASES:
            loads = await in_turns(effort.rounds, _both(run, tool, arguments, command, effort))
            ours, theirs = loads["tool"], loads["command"]
            rows.append(Row(f"{tool}: {label}", _beside(ours, theirs)))
            rows.append(Row(f"  by exec: {command}", theirs.figures()))
            share = theirs.p50 / ours.p50
            goals.append(
                Goal(f"of the command's speed: {tool}, {label}", share, 0.5, at_least=True)
            )
    title = f"Searching {files:,} files, {files * _KIB_A_FILE / 1024:.0f} MB"
    return Section("files", title, tuple(rows), tuple(goals))


def _both(
    run: Sandboxes, tool: str, arguments: dict[str, Any], command: str, effort: Effort
) -> dict[str, Measurement]:
    async def search(_: int) -> None:
        result = await run.executor.execute("t0", ToolCall(tool, arguments))
        if not result.success:
            raise RuntimeError(f"{tool} {arguments}: {result.error}")

    return {
        "tool": lambda: drive(search, 1, effort.seconds),
        "command": lambda: drive(lambda number: run.shell(number, command), 1, effort.seconds),
    }


def _beside(ours: Load, theirs: Load) -> dict[str, float]:
    return {**ours.figures(), "of command": ours.figures()[RATE] / theirs.figures()[RATE]}
