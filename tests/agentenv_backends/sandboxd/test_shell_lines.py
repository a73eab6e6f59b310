"""What a bash is sent, tried on a bash."""

from __future__ import annotations

import os
import select
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.sandboxd.shell_lines import BEGIN, ERRORS, REPORT, Report, late_line, line_of
from tests.waiting import WITHIN_S

if TYPE_CHECKING:
    from collections.abc import Iterator

_START = 'exec bash --norc --noprofile --noediting -i {0}<&"$1" {1}>&"$2" {2}>/dev/null 2>&1'


class Bash:
    """A shell that reads lines from one socket and reports on another."""

    def __init__(self) -> None:
        self._lines, lines = socket.socketpair()
        self._reports, reports = socket.socketpair()
        passed = (lines.fileno(), reports.fileno())
        self._process = subprocess.Popen(
            ["bash", "-c", _START.format(0, REPORT, ERRORS), "bash", *map(str, passed)],
            pass_fds=passed,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        lines.close()
        reports.close()
        self.send(BEGIN)

    def send(self, line: bytes) -> None:
        self._lines.sendall(line)

    def report(self, nonce: bytes) -> tuple[int, bool]:
        """The first that comes, which must be of that command."""
        report = Report(nonce)
        while report.code < 0:
            readable, _, _ = select.select([self._reports], [], [], WITHIN_S)
            assert readable, "no report"
            text = os.read(self._reports.fileno(), 4096)
            assert nonce in text
            report.add(text)
        return report.code, report.was_evaluated

    def end(self) -> None:
        self._lines.close()
        self._process.kill()
        self._process.wait()
        self._reports.close()


@pytest.fixture
def bash() -> Iterator[Bash]:
    bash = Bash()
    yield bash
    bash.end()


def test_a_command_is_reported_once_with_its_exit_code(bash: Bash) -> None:
    for number in (0, 3, 130, 255):
        nonce = b"%04d" % number
        bash.send(line_of(b"(exit %d)" % number, nonce, 0) + late_line(nonce))
        assert bash.report(nonce) == (number, True)


def test_a_command_that_was_dropped_before_it_began_is_reported_by_the_late_line(
    bash: Bash,
) -> None:
    bash.send(line_of(b"true", b"0000", 0))
    assert bash.report(b"0000") == (0, True)
    bash.send(late_line(b"1111"))
    assert bash.report(b"1111") == (130, True)


def test_so_is_one_that_was_interrupted(bash: Bash) -> None:
    bash.send(line_of(b"kill -INT $$; true", b"0000", 0) + late_line(b"0000"))
    assert bash.report(b"0000") == (130, True)


def test_a_hidden_eval_is_told_and_gone_round(bash: Bash) -> None:
    bash.send(line_of(b"eval() { return 7; }", b"0000", 0))
    assert bash.report(b"0000") == (0, True)
    bash.send(line_of(b"(exit 5)", b"1111", 0) + late_line(b"1111"))
    assert bash.report(b"1111") == (7, False)
    bash.send(line_of(b"(exit 5)", b"2222", 0, hides_eval=True))
    assert bash.report(b"2222") == (5, True)
