"""`python -m tests.planning`: a pool over clusters of rising size, in virtual time, and what it costs the driver.

    --hosts 10,100,1000   sizes, in hosts of ten slots
    --seconds 60          virtual seconds that are measured at each
    --only steady         one of what may happen: steady, one by one, a tenth

Virtual times depend on nothing but the seed. Processor times are this machine's: compare those of one run.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from rich.console import Console
from rich.table import Table

from tests.planning.cluster import Costs
from tests.planning.scenarios import (
    Outcome,
    Size,
    a_tenth_goes_at_once,
    nodes_go_one_by_one,
    simulate,
)

_MISHAPS = {
    "steady": None,
    "one by one": nodes_go_one_by_one,
    "a tenth": a_tenth_goes_at_once,
}


def main() -> None:
    """Simulate, and print a line for each size and mishap."""
    parser = argparse.ArgumentParser(prog="python -m tests.planning")
    parser.add_argument("--hosts", default="10,100,300,1000")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", choices=sorted(_MISHAPS), action="append")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    table = Table(*("slots", "what happens", "all held after", "again after", "retried", "pulls"))
    for name in ("wait p50", "wait p99", "commands/s", "pool CPU", "CPU per 1,000"):
        table.add_column(name, justify="right")
    console = Console(width=140)
    for hosts in map(int, options.hosts.split(",")):
        for name in options.only or _MISHAPS:
            mishap = _MISHAPS[name]
            began = time.monotonic()
            size = Size(hosts, seconds=options.seconds, images_there=mishap is None)
            table.add_row(*_row(name, simulate(size, Costs(), mishap)))
            sys.stderr.write(f"{hosts} hosts, {name}: {time.monotonic() - began:.0f} s\n")
    console.print(table)


def _row(name: str, outcome: Outcome) -> list[str]:
    size = outcome.size
    per_thousand = 1000 * outcome.cpu_share / size.trajectories
    return [
        f"{size.trajectories:,}",
        name,
        f"{outcome.full_s:.0f} s",
        f"{outcome.recovered_s:.0f} s" if outcome.recovered_s else "",
        str(outcome.retried),
        str(outcome.pulls),
        f"{outcome.wait(0.5):.2f} s",
        f"{outcome.wait(0.99):.1f} s",
        f"{outcome.commands / size.seconds:.0f}",
        f"{outcome.cpu_share:.1%}",
        f"{per_thousand:.2%}",
    ]


if __name__ == "__main__":
    main()
