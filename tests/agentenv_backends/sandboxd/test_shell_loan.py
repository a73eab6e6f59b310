"""What is told of a shell that goes to and fro between init and host, and what a shell tells of its commands."""

from __future__ import annotations

import pytest

from agentenv_backends.sandboxd.shell_lines import Report
from agentenv_backends.sandboxd.shell_loan import Begun, Returned, decode


def test_a_shell_comes_back_as_it_was_given() -> None:
    begun = Begun(b"0123", 12.5, [7, 8])
    begun.output, begun.errors, begun.report, begun.unsent = b"out", b"\xff\0", b"bash: /d", b""
    for given in (Returned(0, [b"", b""]), Returned(3, [b"\xe2", b""], begun)):
        got = decode(*given.encode())
        assert (got.last_code, got.rests) == (given.last_code, given.rests)
        assert (got.begun is None) == (given.begun is None)
        if got.begun is not None:
            assert all(getattr(got.begun, name) == getattr(begun, name) for name in Begun.__slots__)


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_report_is_read_in_whatever_pieces_it_comes(cut: int) -> None:
    text = b"noise bash: /dev/null/ab12/42/ab12: Not a directory\n"
    report = Report(b"ab12")
    report.add(text[:cut])
    report.add(text[cut:])
    assert (report.code, report.was_evaluated) == (42, True)


@pytest.mark.parametrize("text", [b"", b"/dev/null/ab12/4", b"/dev/null/ffff/0/ffff: Not"])
def test_what_is_no_report_of_the_command_is_none(text: bytes) -> None:
    report = Report(b"ab12")
    report.add(text)
    assert report.code == -1


@pytest.mark.parametrize(("mark", "was"), [(b"", False), (b":ab", False), (b"late", True)])
def test_a_report_tells_whether_the_command_was_evaluated(mark: bytes, was: bool) -> None:
    report = Report(b"ab12")
    report.add(b"bash: /dev/null/ab12/130/%s: Not a directory\n" % mark)
    assert (report.code, report.was_evaluated) == (130, was)
