"""`python -m tests.benchmarks`: what the framework costs, beside floors and rivals measured in the same run.

    --only exec,mix     these sections only
    --json FILE         the figures for other programs
    --quick             much less of everything: shows that it runs, measures nothing

Other projects are measured beside ours where AGENTENV_BENCH_PEERS names a Python that has them (SWE-ReX, inspect_ai),
the trajectory server beside that of Atropos where scripts/atropos-venv.sh has made its virtual environment.

Figures of two runs are not to be compared, their ratios are. Nothing fails because of a figure; the exit status is 1
when a section could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console

from tests.benchmarks import (
    machine,
    report,
    section_api,
    section_containers,
    section_docker,
    section_exec,
    section_files,
    section_groups,
    section_memory,
    section_mix,
    section_modal,
    section_nomad,
    section_setup,
    section_slots,
    section_slow,
    section_snapshots,
    section_sweeps,
    section_terminals,
    section_warm,
)
from tests.benchmarks.figures import FULL, QUICK, Effort, Section

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_WIDTH = 120
SECTIONS: dict[str, Callable[[Effort], Awaitable[Section]]] = {
    "exec": section_exec.run,
    "terminals": section_terminals.run,
    "slots": section_slots.run,
    "warm": section_warm.run,
    "setup": section_setup.run,
    "snapshots": section_snapshots.run,
    "files": section_files.run,
    "mix": section_mix.run,
    "slow": section_slow.run,
    "memory": section_memory.run,
    "groups": section_groups.run,
    "docker": section_docker.run,
    "containers": section_containers.run,
    "modal": section_modal.run,
    "nomad": section_nomad.run,
    "api": section_api.run,
    "sweeps": section_sweeps.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say whether every section could be measured."""
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    facts = machine.facts()
    report.show_machine(console, facts)
    started = perf_counter()
    sections = []
    for name in options.only:
        section = asyncio.run(_measure(name, QUICK if options.quick else FULL))
        report.show(console, section)
        sections.append(section)
    console.print(f"measured in {perf_counter() - started:.0f} s", highlight=False)
    if options.json:
        text = json.dumps(report.as_json(facts, sections), indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")
    return int(any(section.error for section in sections))


async def _measure(name: str, effort: Effort) -> Section:
    try:
        async with asyncio.timeout(effort.section_limit_s):
            return await SECTIONS[name](effort)
    except Exception as error:  # noqa: BLE001 - the other sections can still be measured
        return Section(name, name, error=f"not measured: {_cause(error)}")


def _cause(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--only", type=_names, default=list(SECTIONS), metavar="NAME,...")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(unknown)}; there is: {', '.join(SECTIONS)}"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
