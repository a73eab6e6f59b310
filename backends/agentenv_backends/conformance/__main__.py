"""`python -m agentenv_backends.conformance CONFIG`: check a backend from a shell."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from agentenv_backends.conformance import CHECKS, run_checks
from agentenv_backends.conformance.running import BUILT_IN, Outcome


def main() -> int:
    """Print an outcome a line; the exit code is 1 when a promise is broken."""
    parser = argparse.ArgumentParser(
        prog="python -m agentenv_backends.conformance",
        description="Check that a backend keeps every promise of the Backend contract.",
    )
    parser.add_argument(
        "arguments",
        help='of the factory, as JSON; for the built-in one a config: {"type": "local"}',
    )
    parser.add_argument("--factory", default=BUILT_IN, help="module:function (%(default)s)")
    parser.add_argument("--group", action="append", help="only these groups of checks")
    parser.add_argument("--list", action="store_true", help="list the checks and end")
    options = parser.parse_args()
    checks = [check for check in CHECKS if not options.group or check.group in options.group]
    if options.list:
        sys.stdout.writelines(f"{check.group}: {check.name}\n" for check in checks)
        return 0
    if not checks:
        parser.error(f"no such group; there is: {', '.join({check.group for check in CHECKS})}")
    report = asyncio.run(
        run_checks(options.factory, json.loads(options.arguments), checks=checks, tell=_tell)
    )
    sys.stdout.write(report.text().rpartition("\n")[2] + "\n")
    return 0 if report.passed else 1


def _tell(outcome: Outcome) -> None:
    sys.stdout.write(
        f"{outcome.status:>11} {outcome.seconds:6.1f} s  {outcome.check.group}: {outcome.check.name}"
        f"{': ' if outcome.detail else ''}{outcome.detail}\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
