"""`agentenv run TASK` and `agentenv batch DIR`: task directories with a model."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from agentenv.cli.run_console import ConsoleObserver, result_lines, show_header
from agentenv.cli.watch import add_watch_option, watch_announcer
from agentenv.errors import ConfigError
from agentenv.run.panels import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from agentenv.control.pause import PauseGate
    from agentenv.models.settings import ChatModelSettings
    from agentenv.runner.results import BatchResult, TaskResult

_DEFAULT_MODEL = "gemini/gemini-2.5-computer-use-preview-10-2025"
_RUN_HELP = """
MODEL is `gemini/...`, `claude-...`, `openai/...`, `bedrock/...`, or any name with --base-url. Keys come from the
environment or from .env: GEMINI_API_KEY or GOOGLE_API_KEY, ANTHROPIC_API_KEY, OPENAI_API_KEY, AWS_ACCESS_KEY_ID with
AWS_SECRET_ACCESS_KEY and AWS_REGION, or AGENTENV_MODEL_API_KEY for a server of your own.
Exit status: 0 passed, 1 not, 2 refused before anything started, 130 interrupted.
"""


def add_run_parsers(chosen: Any) -> list[argparse.ArgumentParser]:
    """Add both commands to the others; returns their parsers."""
    run: argparse.ArgumentParser = chosen.add_parser(
        "run",
        help="let a model work on a task directory, and judge it",
        description="Let a model work on a task directory, and judge what it did.",
        epilog=_RUN_HELP,
    )
    run.add_argument("task", metavar="TASK", help="a directory with a task.toml")
    run.add_argument(
        "-i", "--interactive", action="store_true", help="the key p pauses the agent and resumes it"
    )
    batch: argparse.ArgumentParser = chosen.add_parser(
        "batch",
        help="let a model work on every task directory below a folder",
        description="Let a model work on every task directory below a folder.",
        epilog=_RUN_HELP,
    )
    batch.add_argument("dir", metavar="DIR")
    batch.add_argument(
        "-n", "--concurrent", type=int, default=2, metavar="N", help="tasks at once (default: 2)"
    )
    batch.add_argument(
        "-k",
        "--n-attempts",
        type=int,
        default=1,
        metavar="K",
        help="runs of each task (default: 1)",
    )
    batch.add_argument("-q", "--quiet", action="store_true", help="show only the totals")
    batch.add_argument(
        "-p", "--pattern", default="**/task.toml", help="which files below DIR mark a task"
    )
    for parser in (run, batch):
        _shared_options(parser)
    return [run, batch]


def _shared_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", default=_DEFAULT_MODEL, help=f"(default: {_DEFAULT_MODEL})"
    )
    parser.add_argument(
        "--provider",
        default="docker",
        help="where commands run: docker, local, nomad or modal (default: docker)",
    )
    parser.add_argument("-o", "--output", default="output", metavar="DIR", help="(default: output)")
    add_watch_option(parser)
    parser.add_argument(
        "--base-url", metavar="URL", help="the model's address, in place of its provider's"
    )
    parser.add_argument(
        "--text-tools",
        action="store_true",
        help="describe tools in text, for models that take none",
    )


def run_run(options: argparse.Namespace, console: Console) -> int:
    """Run one task, showing what happens. 0 when it passed, else 1."""
    return asyncio.run(_run(options, console))


def run_batch(options: argparse.Namespace, console: Console) -> int:
    """Run every task. 0 when all passed, else 1."""
    return asyncio.run(_batch(options, console))


async def _run(options: argparse.Namespace, console: Console) -> int:
    from agentenv.control.pause import LONGEST_PAUSE_S, PauseGate  # noqa: PLC0415 - not needed by other commands
    from agentenv.runner import AgentRunner  # noqa: PLC0415
    from agentenv.tasks.errors import TaskFormatError  # noqa: PLC0415

    gate = PauseGate(limit_s=LONGEST_PAUSE_S) if options.interactive else None
    runner = AgentRunner(
        options.task,
        model=options.model,
        provider=options.provider,
        output_dir=options.output,
        settings=_settings(options),
        watch=options.watch,
        observers=(ConsoleObserver(console),),
        gate=gate,
        announce=watch_announcer(console),
    )
    show_header(console, options.task, options.model, options.provider)
    try:
        with pausing(gate, console):
            result = await runner.run()
    except TaskFormatError as error:
        raise ConfigError(str(error)) from error
    for line in result_lines(result):
        console.print(line, soft_wrap=True)
    return 0 if result.success else 1


async def _batch(options: argparse.Namespace, console: Console) -> int:
    from agentenv.runner import ParallelRunner, discover_tasks  # noqa: PLC0415 - not needed by others

    paths = await asyncio.to_thread(discover_tasks, options.dir, options.pattern)
    if not paths:
        raise ConfigError(f"{options.dir} has no task directory ({options.pattern})")
    for name, number in (("-n", options.concurrent), ("-k", options.n_attempts)):
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, not {number}")
    show_header(console, f"{options.dir} ({len(paths)} tasks)", options.model, options.provider)

    def show(result: TaskResult) -> None:
        console.print(_task_line(result), soft_wrap=True)

    runner = ParallelRunner(
        paths,
        n_concurrent=options.concurrent,
        model=options.model,
        provider=options.provider,
        output_dir=options.output,
        quiet=True,
        on_complete=None if options.quiet else show,
        n_attempts=options.n_attempts,
        settings=_settings(options),
        watch=options.watch,
        announce=watch_announcer(console),
    )
    batch = await runner.run()
    console.print(_totals(batch, options.n_attempts))
    return 0 if batch.passed == batch.total_tasks else 1


def _settings(options: argparse.Namespace) -> ChatModelSettings:
    from agentenv.models import ChatModelSettings  # noqa: PLC0415 - not needed by other commands

    return ChatModelSettings(base_url=options.base_url, native_tools=not options.text_tools)


def _task_line(result: TaskResult) -> Text:
    verdict = ("PASS", "green") if result.success else ("FAIL", "red")
    if not result.counts:
        verdict = ("ERROR", "yellow")
    text = f" {result.task_path}  reward {result.reward:g}  {result.duration:.1f} s"
    error = f"  {result.error}" if result.error else ""
    return Text.assemble((f"{verdict[0]:5}", verdict[1]), printable(text + error))


def _totals(batch: BatchResult, attempts: int) -> Table:
    table = Table(show_header=False)
    rows = {
        "runs": batch.total_tasks,
        "passed": batch.passed,
        "failed": batch.failed,
        "not counted": batch.not_counted,
        "mean reward": f"{batch.mean_reward:.4f}",
        **_pass_at(batch, attempts),
        "seconds": f"{batch.duration:.1f}",
        "output": str(batch.output_dir),
    }
    for name, value in rows.items():
        table.add_row(name, Text(printable(str(value))))
    return table


def _pass_at(batch: BatchResult, attempts: int) -> dict[str, str]:
    """pass@k for k = 1 and every power of two that each task has so many counted runs for."""
    if attempts == 1:
        return {}
    from agentenv.evaluation.statistics import pass_at_k  # noqa: PLC0415 - not needed by other commands

    runs: dict[Path, list[bool]] = defaultdict(list)
    for task in batch.tasks:
        if task.counts:
            runs[task.task_path].append(task.success)
    least = min((len(passed) for passed in runs.values()), default=0)
    tried = [len(passed) for passed in runs.values()]
    solved = [sum(passed) for passed in runs.values()]
    ks = [k for k in (2**power for power in range(10)) if k <= least]
    return {f"pass@{k}": f"{pass_at_k(tried, solved, k).mean():.4f}" for k in ks}


@contextlib.contextmanager
def pausing(gate: PauseGate | None, console: Console) -> Iterator[None]:
    """While the block runs, the key p closes and opens the gate. Needs a terminal."""
    if gate is None:
        yield
        return
    from agentenv.cli.keys import pressed_keys  # noqa: PLC0415 - needs a terminal

    def toggle(key: str) -> None:
        if key.lower() != "p":
            return
        if gate.paused:
            gate.resume()
        else:
            gate.pause()
        console.print("paused; p resumes" if gate.paused else "resumed")

    console.print("p pauses the agent and resumes it")
    with pressed_keys(toggle):
        yield
