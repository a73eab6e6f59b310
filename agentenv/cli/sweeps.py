"""`agentenv evaluate SWEEP.yaml`, `compare`, `export`, `report`: sweeps on the command line."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv.cli import commands
from agentenv.cli.event_loop import run_to_the_end
from agentenv.cli.watch import add_watch_option, watch_announcer
from agentenv.errors import ConfigError
from agentenv.run.panels import printable
from agentenv.stopping import STOP_GRACE_S, StopRequests
from agentenv.yaml_file import load_yaml, read_yaml

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from agentenv.evaluation.reader import SweepReader
    from agentenv.evaluation.runner import Sweep, SweepCounts
    from agentenv.evaluation.spec import SweepConfig
    from agentenv.evaluation.store import SweepStore
    from agentenv.evaluation.summary import Choice

_SWEEP_HELP = """
CONFIG.yaml names an environment, whose own `evaluate` is run, or is a sweep (it has `tasks:` and `models:`), of which
every sample is taken that RUN_DIR does not hold yet.

    agentenv evaluate configs/sweep.yaml --run-dir runs/sweep      begin; the same again goes on, whatever ended it
    agentenv evaluate configs/sweep.yaml --run-dir runs/sweep --rescore

After Ctrl-C no report is written: `agentenv report` does that.
Exit status of a sweep: 0 when every sample has ended, 1 when a budget ended it or samples were lost, 130 after Ctrl-C.
"""
_COMPARE_HELP = """
    agentenv compare runs/before runs/after
    agentenv compare runs/sweep@small runs/sweep@large         (models of one sweep)
    agentenv compare runs/sweep@small@cold runs/sweep@small@warm
    agentenv compare runs/sweep@small runs/sweep@medium runs/sweep@large       (every two)

Tasks that only one of them has a score for are left out and counted.
"""


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate` that are about sweeps."""
    parser.epilog = _SWEEP_HELP
    parser.add_argument(
        "--run-dir", metavar="DIR", help="of a sweep (default: a new one below runs/)"
    )
    parser.add_argument(
        "--rescore", action="store_true", help="judge the samples there are again; run nothing"
    )
    parser.add_argument(
        "--other-spec",
        action="store_true",
        help="go on although RUN_DIR holds samples of a sweep that differs",
    )
    parser.add_argument("--no-report", action="store_true", help="write no report.html of a sweep")
    parser.add_argument(
        "--plain", action="store_true", help="progress as lines, also on a terminal"
    )
    add_watch_option(parser)


def refuse_sweep_options(options: argparse.Namespace) -> None:
    """Raise `ConfigError` where an option of sweeps is given with something else."""
    for name in ("run_dir", "rescore", "other_spec", "no_report", "plain", "watch"):
        if getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for sweeps, and {options.config} is none: no `tasks:`")


def add_sweep_parsers(chosen: Any) -> list[argparse.ArgumentParser]:
    """The parsers of `compare`, `export` and `report`."""
    compare: argparse.ArgumentParser = chosen.add_parser(
        "compare",
        help="say which of two sweeps, or models of one, is better on the same tasks",
        description="Compare sweeps, or models of one, paired by task: difference, interval, p-value.",
        epilog=_COMPARE_HELP,
    )
    for name in ("A", "B"):
        compare.add_argument(name.lower(), metavar=name, help="RUN_DIR[@MODEL[@SETTINGS]]")
    compare.add_argument("more", metavar="MORE", nargs="*", help="further ones: then every two")
    export = chosen.add_parser(
        "export", help="write the samples of a sweep to a .csv, .jsonl or .parquet file"
    )
    export.add_argument("run_dir", metavar="RUN_DIR")
    export.add_argument("target", metavar="FILE")
    export.add_argument(
        "--trajectories", action="store_true", help="with their trajectories (.jsonl alone)"
    )
    report = chosen.add_parser("report", help="write the report.html of a run directory again")
    report.add_argument("run_dir", metavar="RUN_DIR")
    report.add_argument(
        "--serve", action="store_true", help="serve the report of a sweep instead, on this machine"
    )
    report.add_argument(
        "--port", type=int, default=0, help="port to serve on (default: 0, a free one)"
    )
    return [compare, export, report]


def is_sweep_file(path: Path) -> bool:
    """Whether a YAML file is a sweep rather than settings of one environment. Raises `ConfigError`."""
    content = load_yaml(path)
    return isinstance(content, dict) and "tasks" in content


def run_sweep_command(options: argparse.Namespace, flags: list[str], console: Console) -> int:
    """Take the samples of a sweep, or judge them again; print what came of it."""
    from agentenv.evaluation.spec import SweepConfig  # noqa: PLC0415 - numpy and more, which other commands do not need

    if flags:
        raise ConfigError(f"a sweep takes no flags of settings, but {flags[0]} was given")
    path = Path(options.config)
    config = read_yaml(path, SweepConfig)
    directory = Path(options.run_dir) if options.run_dir else new_directory(config.name)
    if options.rescore and not options.run_dir:
        raise ConfigError("--rescore needs the --run-dir of the sweep")
    return run_to_the_end(_sweep(config, directory, options, console))


async def _sweep(
    config: SweepConfig, directory: Path, options: argparse.Namespace, console: Console
) -> int:
    from agentenv.evaluation.sources import check_arms  # noqa: PLC0415
    from agentenv.evaluation.store import SweepStore  # noqa: PLC0415

    check_arms(config)
    store = await SweepStore.open(directory, config, other=options.other_spec)
    try:
        if options.rescore:
            status = await _rescore(config, store, console)
        else:
            status = await _run(config, store, options, console)
    finally:
        await store.close()
    report = not options.no_report
    if (
        report and status == commands.INTERRUPTED
    ):  # whoever wants the end is not kept: a large one takes half a minute
        console.print(
            f"no report was written: agentenv report {directory}", markup=False, soft_wrap=True
        )
        report = False
    await asyncio.to_thread(_show, directory, console, report=report)
    return status


async def _run(
    config: SweepConfig, store: SweepStore, options: argparse.Namespace, console: Console
) -> int:
    requests = StopRequests()
    if options.watch:
        sweep = await _take_watched(config, store, requests, options, console)
    else:
        sweep = await _take(config, store, requests, options, console)
    counts = sweep.counts
    if counts.stopped or not sweep.complete:
        console.print(_what_is_left(counts, store.path), markup=False, soft_wrap=True)
    if requests.made:
        return commands.INTERRUPTED
    return commands.OK if sweep.complete else commands.FAILED


async def _take(
    config: SweepConfig,
    store: SweepStore,
    requests: StopRequests,
    options: argparse.Namespace,
    console: Console,
    **watched: Any,
) -> Sweep:
    """Take the samples; `watched` is for `open_source`."""
    from agentenv.cli.sweep_display import SweepDisplay  # noqa: PLC0415
    from agentenv.evaluation.runner import Sweep  # noqa: PLC0415
    from agentenv.evaluation.sources import open_source  # noqa: PLC0415

    sweep = Sweep(config, store, source=partial(open_source, **watched))
    requests.on_stop = lambda: sweep.stop("it was interrupted", STOP_GRACE_S)
    with requests.from_signals(), SweepDisplay(console, sweep.counts, plain=options.plain):
        await requests.run(sweep.run())
    return sweep


async def _take_watched(
    config: SweepConfig,
    store: SweepStore,
    requests: StopRequests,
    options: argparse.Namespace,
    console: Console,
) -> Sweep:
    from agentenv.watch import WatchedEnvironments, watching  # noqa: PLC0415 - imports a server

    environments = WatchedEnvironments()
    async with watching(
        cancel_all=requests.request, slots=environments.slots, announce=watch_announcer(console)
    ) as watch:
        watched = {"watch": watch, "environments": environments}
        return await _take(config, store, requests, options, console, **watched)


def _what_is_left(counts: SweepCounts, directory: Path) -> str:
    lost = counts.outcomes.get("infrastructure_failed", 0)
    parts = [f"stopped: {counts.stopped}"] if counts.stopped else []
    parts += [f"{lost} samples were lost to infrastructure"] if lost else []
    cancelled = counts.outcomes.get("cancelled", 0)
    parts += [f"{cancelled} samples were cancelled"] if cancelled else []
    parts.append(f"give --run-dir {directory} again to go on")
    return printable("; ".join(parts))


async def _rescore(config: SweepConfig, store: SweepStore, console: Console) -> int:
    from agentenv.evaluation.rescorer import rescore  # noqa: PLC0415

    counts = await rescore(config, store)
    console.print(
        f"scored again: {counts.scored}, {counts.changed} of them with another reward; "
        f"verifier failed: {counts.failed}; kept as they were: {sum(counts.kept.values())}",
        markup=False,
    )
    for reason, times in counts.kept.items():
        console.print(f"{times:>6} x {printable(reason)}", markup=False, soft_wrap=True)
    return commands.OK


def _show(directory: Path, console: Console, *, report: bool) -> None:
    """The table of a sweep, and its report."""
    from agentenv.evaluation.reader import SweepReader  # noqa: PLC0415
    from agentenv.evaluation.summary import summarise  # noqa: PLC0415
    from agentenv.evaluation.terminal import lost_lines, sweep_tables  # noqa: PLC0415

    with SweepReader(directory) as reader:
        summaries = summarise(reader)
        for table in sweep_tables(summaries, str(reader.spec["name"])):
            console.print(table)
        for line in lost_lines(summaries):
            console.print(line, soft_wrap=True)
    console.print(f"run directory: {directory}", markup=False, soft_wrap=True)
    if report:
        from agentenv.evaluation.report.page import write_sweep_report  # noqa: PLC0415

        console.print(f"report: {write_sweep_report(directory)}", markup=False, soft_wrap=True)


def run_compare(options: argparse.Namespace, console: Console) -> int:
    """Print how sweeps, or models of one, differ."""
    from agentenv.evaluation.summary import chosen_arms, compare  # noqa: PLC0415
    from agentenv.evaluation.terminal import difference_table, differences_table  # noqa: PLC0415

    words = [options.a, options.b, *options.more]
    with ExitStack() as stack:
        sides = []
        for word in words:
            reader, choice = _opened(word)
            stack.enter_context(reader)
            sides.append((word, reader, chosen_arms(reader, choice)))
        found = [
            (first, second, compare(a, of_a, b, of_b))
            for (first, a, of_a), (second, b, of_b) in combinations(sides, 2)
        ]
    if options.more:
        console.print(differences_table(found))
    else:
        first, second, difference = found[0]
        console.print(difference_table(difference, first, second))
    return commands.OK


def _opened(word: str) -> tuple[SweepReader, Choice]:
    """`RUN_DIR[@MODEL[@SETTINGS]]`."""
    from agentenv.evaluation.reader import SweepReader  # noqa: PLC0415
    from agentenv.evaluation.summary import Choice  # noqa: PLC0415

    directory, *names = word.split("@")
    if len(names) > 2:
        raise ConfigError(f"{word}: must have the form RUN_DIR[@MODEL[@SETTINGS]]")
    return SweepReader(directory), Choice(*names)


def run_export(options: argparse.Namespace, console: Console) -> int:
    """Write a sweep's samples to a file."""
    from agentenv.evaluation.export import export  # noqa: PLC0415
    from agentenv.evaluation.reader import SweepReader  # noqa: PLC0415

    target = Path(options.target)
    with SweepReader(options.run_dir) as reader:
        count = export(reader, target, trajectories=options.trajectories)
    console.print(f"{count:,} samples: {target}", markup=False, soft_wrap=True)
    return commands.OK


def run_sweep_report(options: argparse.Namespace, console: Console) -> int:
    """Write the report of a run directory again, of whatever kind it is; or serve that of a sweep."""
    from agentenv.evaluation.schema import DATABASE  # noqa: PLC0415

    directory = Path(options.run_dir)
    if options.serve:
        return _serve(directory, options.port, console)
    if not (directory / DATABASE).exists():
        return commands.run_report(directory, console)
    from agentenv.evaluation.report.page import write_sweep_report  # noqa: PLC0415

    console.print(str(write_sweep_report(directory)), markup=False, soft_wrap=True)
    return commands.OK


def _serve(directory: Path, port: int, console: Console) -> int:
    from agentenv.cli.services import announcer  # noqa: PLC0415 - imports a server
    from agentenv.evaluation.report.server import SweepServer  # noqa: PLC0415
    from agentenv_tools.serving import ServeSettings, serve_until_stopped  # noqa: PLC0415

    async def serve() -> None:
        server = SweepServer(directory, ServeSettings(port=port))
        await serve_until_stopped(server, announcer(console, f"sweep: {directory}"))

    asyncio.run(serve())
    return commands.OK


def new_directory(name: str) -> Path:
    """A new folder below `runs/`, which is not made yet."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    safe = "".join(part if part.isalnum() or part in "-_." else "-" for part in name)[:80]
    return commands.first_free(Path("runs") / f"{safe}-{stamp}")
