"""What every backend must do, as checks that run against a real one.

    report = await run_checks("my_package.backend:make", {"address": "..."})     # a factory, and its arguments
    assert report.passed, report.text()

or from a shell, for a backend of this package:

    python -m agentenv_backends.conformance '{"type": "local"}'

The factory is named rather than passed, because some checks kill a process that uses the backend. It returns a
`Backend` that is not started, with room for at least four slots, no network for its commands, and small limits.
What a backend cannot do it declares in its `Capabilities`; the checks that need it are then reported as `not offered`.
"""

from agentenv_backends.conformance import (  # noqa: F401 - importing them registers their checks
    checks_of_commands,
    checks_of_confinement,
    checks_of_files,
    checks_of_life,
    checks_of_limits,
    checks_of_search,
    checks_of_snapshots,
    checks_of_terminals,
)
from agentenv_backends.conformance.checks import CHECKS, Check, Subject, Violation
from agentenv_backends.conformance.running import Outcome, Report, backend_from_config, run_checks

__all__ = [
    "CHECKS",
    "Check",
    "Outcome",
    "Report",
    "Subject",
    "Violation",
    "backend_from_config",
    "run_checks",
]
