"""What the commands do, once their settings are resolved. Each returns an exit status."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from agentenv.cli.event_loop import run_to_the_end
from agentenv.cli.settings import Settings
from agentenv.cli.watch import watching_env
from agentenv.evaluation.atropos_log import keep_evaluation
from agentenv.process import process
from agentenv.rollout import finish
from agentenv.run.directory import GROUPS_FILE, RunDirectory
from agentenv.run.panels import printable, summary_table
from agentenv.run.progress import PlainProgress, QuietProgress, open_progress
from agentenv.run.token_texts import tokenizer_texts

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from rich.console import Console

    from agentenv.atif.store import TrajectoryLog
    from agentenv.env import AgentEnv

logger = logging.getLogger(__name__)

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: done; it went wrong on the way; it was not started; Ctrl-C before anything
was collected."""


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """What `process` and `serve` are told beside the settings."""

    run_dir: Path | None = None
    report: bool = True
    plain: bool = False
    watch: bool = False
    """Of `process` alone."""


def run_process(
    env_class: type[AgentEnv[Any]], settings: Settings, options: ProcessOptions, console: Console
) -> int:
    """Collect groups into a run directory, showing progress, and end with a summary."""
    return run_to_the_end(_process(env_class, settings, options, console))


async def _process(
    env_class: type[AgentEnv[Any]], settings: Settings, options: ProcessOptions, console: Console
) -> int:
    env = build_environment(env_class, settings)
    directory = await RunDirectory.open(options.run_dir or run_dir_for(env))
    try:
        await _write_config(directory, env_class, settings)
        async with _recorded(env, directory.path, default=True):
            status = await _collect(env, directory, options, console)
    finally:
        await directory.close()
    return status


def run_serve(
    env_class: type[AgentEnv[Any]], settings: Settings, options: ProcessOptions, console: Console
) -> int:
    """Feed a trainer, showing progress, and end with a summary."""
    return run_to_the_end(_serve(env_class, settings, options, console))


async def _serve(
    env_class: type[AgentEnv[Any]], settings: Settings, options: ProcessOptions, console: Console
) -> int:
    env = build_environment(env_class, settings)
    directory = await RunDirectory.open(options.run_dir or run_dir_for(env), extend=True)
    try:
        await _write_config(directory, env_class, settings)
        display = PlainProgress(console, None) if options.plain else open_progress(console, None)
        with display as progress:
            async with _recorded(env, directory.path, default=False):
                await _feed(env, directory, progress)
        paths = {"run directory": str(directory.path)}
        console.print(summary_table(progress.counters, paths))
    finally:
        await directory.close()
    return OK


async def _feed(env: AgentEnv[Any], directory: RunDirectory, progress: QuietProgress) -> None:
    """`serve` over the network; the summary is written whatever happens."""
    from agentenv.serve import open_link, serve  # noqa: PLC0415 - imports a client

    link = open_link(env.config)
    totals: dict[str, Any] = {}
    try:
        totals = await serve(env, link, directory, progress=progress)
    finally:
        await finish(link.close())
        await directory.write_summary(progress.counters.summary() | {"serve": totals})


async def serve_quietly(env: AgentEnv[Any]) -> None:
    """What `serve` does with an environment made by hand, without display."""
    directory = await RunDirectory.open(run_dir_for(env), extend=True)
    try:
        await _write_config(directory, type(env), Settings(env.config, env.server_configs))
        async with _recorded(env, directory.path, default=False):
            await _feed(env, directory, QuietProgress())
    finally:
        await directory.close()


async def process_quietly(env: AgentEnv[Any]) -> None:
    """What `process` does with an environment made by hand, without display and report."""
    progress = QuietProgress()
    directory = await RunDirectory.open(run_dir_for(env))
    try:
        await _write_config(directory, type(env), Settings(env.config, env.server_configs))
        try:
            async with _recorded(env, directory.path, default=True):
                await process(env, directory=directory, progress=progress)
        finally:
            await directory.write_summary(progress.counters.summary())
    finally:
        await directory.close()


async def _write_config(
    directory: RunDirectory, env_class: type[AgentEnv[Any]], settings: Settings
) -> None:
    name = {"environment": f"{env_class.__module__}:{env_class.__qualname__}"}
    await directory.write_config(name | settings.given(), name | settings.in_force())


async def _collect(
    env: AgentEnv[Any], directory: RunDirectory, options: ProcessOptions, console: Console
) -> int:
    steps = env.config.total_steps
    target = steps if steps >= 0 else None
    display = PlainProgress(console, target) if options.plain else open_progress(console, target)
    failure: Exception | None = None
    with display as progress:
        try:
            async with watching_env(env, console, watch=options.watch):
                await process(env, directory=directory, progress=progress)
        except Exception as error:  # noqa: BLE001 - raised again below, once what was collected is summed up
            failure = error
    counters = progress.counters
    if failure is not None and not counters.trajectories:
        raise failure
    await directory.write_summary(counters.summary())
    paths = {"groups": str(directory.path / GROUPS_FILE)}
    if options.report and counters.groups_done:
        paths["report"] = str(await _report(directory.path, env.config.tokenizer_name))
    console.print(summary_table(counters, paths))
    if failure is not None:
        raise failure
    if counters.groups_done or target == 0:
        return OK
    return INTERRUPTED if counters.interrupted else FAILED


async def _report(run_dir: Path, tokenizer_name: str | None) -> Path:
    return await asyncio.to_thread(_write_report, run_dir, tokenizer_name)


def _write_report(run_dir: Path, tokenizer_name: str | None) -> Path:
    from agentenv.run.report import write_report  # noqa: PLC0415 - not needed by other commands

    return write_report(run_dir, token_texts=tokenizer_texts(tokenizer_name))


def run_evaluate(env_class: type[AgentEnv[Any]], settings: Settings, console: Console) -> int:
    """Set the environment up, evaluate, shut it down, print the metrics."""
    metrics = asyncio.run(_evaluate(build_environment(env_class, settings), console))
    if not metrics:
        console.print(f"{env_class.__name__}.evaluate() returned no metrics", markup=False)
        return OK
    table = Table(show_header=False)
    for name, value in metrics.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(Text(printable(str(name))), Text(printable(shown)))
    console.print(table)
    return OK


async def _evaluate(env: AgentEnv[Any], console: Console) -> dict[str, Any]:
    async with _recorded(env, run_dir_for(env), default=True) as log:
        metrics = await _evaluated(env)
    if log is not None and log.written:
        console.print(f"{log.written} trajectories: {log.path}", markup=False, soft_wrap=True)
    return metrics


async def _evaluated(env: AgentEnv[Any]) -> dict[str, Any]:
    try:
        await env.setup()
        started = time.time()
        evaluating = asyncio.ensure_future(env.evaluate())
        try:
            metrics = dict(await asyncio.shield(evaluating) or {})
        finally:
            if not evaluating.done():
                await finish(env.runtime.cancel({evaluating}))
        await keep_evaluation(env, metrics, started)
        return metrics
    finally:
        await finish(env.shutdown())


def run_report(run_dir: Path, console: Console) -> int:
    """Write `report.html` again, from what the run directory holds."""
    from agentenv.run.report import read_config  # noqa: PLC0415 - not needed by other commands

    name = read_config(run_dir).get("env", {}).get("tokenizer_name")
    report = _write_report(run_dir, name if isinstance(name, str) else None)
    console.print(str(report), markup=False)
    return OK


def _recorded(
    env: AgentEnv[Any], run_dir: Path, *, default: bool
) -> AbstractAsyncContextManager[TrajectoryLog | None]:
    from agentenv.atif.recording import recorded  # noqa: PLC0415 - not needed by other commands

    return recorded(env, run_dir, default=default)


def build_environment(env_class: type[AgentEnv[Any]], settings: Settings) -> AgentEnv[Any]:
    """The environment, not set up."""
    return env_class(settings.env, settings.servers, slurm=settings.slurm, testing=settings.testing)


def run_dir_for(env: AgentEnv[Any]) -> Path:
    """`env.data_path_to_save_groups` without a `.jsonl` at its end, or a new folder below `runs/`."""
    given = env.config.data_path_to_save_groups
    if given is not None:
        return Path(given.removesuffix(".jsonl"))
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = "".join(part if part.isalnum() or part in "-_." else "-" for part in env.display_name)
    return first_free(Path("runs") / f"{name}-{stamp}")


def first_free(base: Path) -> Path:
    """A path that is not there yet: `base`, or with a number behind it."""
    return next(path for number in range(1, 1000) if not (path := _numbered(base, number)).exists())


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")
