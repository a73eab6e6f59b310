"""Runs the tests that standard input names with pytest, and sends their outcomes through a pipe. Standard library only.

The child of supervise.py. Code under test runs in this process: all that it is told is told before any of it is
imported, and the pipe is the only way out that counts.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Dict, List, Set


def main() -> int:
    """Run them; the status is pytest's."""
    order = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    repository = order["repository"]
    sys.path[:] = path_for(repository, order["site"], sys.path)
    import pytest  # noqa: PLC0415 - only now can it be found

    wanted = set(order["nodes"])
    files = sorted({node.split("::")[0] for node in wanted})
    arguments = [
        *(
            "--rootdir=" + repository,
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=",
            "-o",
            "required_plugins=",
        ),
        *("--continue-on-collection-errors", "-q", "--tb=short", "--color=no"),
        *order["arguments"],
        *(file for file in files if os.path.exists(os.path.join(repository, file))),
    ]
    return int(pytest.main(arguments, plugins=[Sender(wanted, order)]))


def path_for(repository: str, site: str, path: List[str]) -> List[str]:
    """Our pytest before all, the repository after the standard library and before what is installed."""
    own = [
        folder for folder in (repository, os.path.join(repository, "src")) if os.path.isdir(folder)
    ]
    installed = [entry for entry in path if "site-packages" in entry or "dist-packages" in entry]
    return [site, *(entry for entry in path if entry not in installed), *own, *installed]


class Sender:
    """Chooses the tests, and sends what becomes of each when its last part is over."""

    def __init__(self, wanted: Set[str], order: Dict[str, Any]) -> None:
        self._wanted = wanted
        self._results = order["results"]
        self._token = order["token"]
        self._outcomes: Dict[str, str] = {}
        self._called = ""

    def pytest_collection_modifyitems(self, config: Any, items: List[Any]) -> None:
        """Only what was asked for runs."""
        left_out = [item for item in items if item.nodeid not in self._wanted]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid in self._wanted]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Passed is what passed in all its parts."""
        node = report.nodeid
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        if self._outcomes.get(node, "passed") == "passed":
            self._outcomes[node] = outcome
        if report.when == "call" or outcome != "passed":
            self._called = node
        if report.when == "teardown":
            done = self._outcomes[node] if self._called == node else "missing"
            os.write(self._results, json.dumps([self._token, node, done]).encode() + b"\n")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads that code under test left would wait for ever
