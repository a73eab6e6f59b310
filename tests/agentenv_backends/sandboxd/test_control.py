"""The control client's protocol, also when what comes is none of it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv_backends.sandboxd import frames
from agentenv_backends.sandboxd.slot_control import Control, TmuxGoneError
from agentenv_backends.sandboxd.slot_init import Link
from agentenv_backends.sandboxd.slot_processes import Descendants
from agentenv_backends.sandboxd.slot_session import Surroundings, WithdrawnError
from agentenv_backends.sandboxd.slot_watch import Watch


class Tmux:
    """The other ends of a control client's pipes."""

    def __init__(self) -> None:
        self.host, slot = socket.socketpair()
        self._slot = slot
        self._signals = os.pipe()
        link = Link(slot.fileno())
        watch = Watch(link.fd, self._signals[0])
        around = Surroundings(link, watch, Descendants(), None, {"PATH": ""})  # type: ignore[arg-type]
        around.request_id = 7
        self.commands, commands = os.pipe()
        replies, self.replies = os.pipe()
        self.output = b""
        self.losses = 0
        self.control = Control(around, commands, replies, self._take, self._lose)

    def say(self, *lines: bytes) -> None:
        os.write(self.replies, b"".join(line + b"\n" for line in lines))

    def ask(self, command: bytes = b"x", within_s: float = 5.0) -> list[bytes]:
        reply = self.control.ask(command, time.monotonic() + within_s)
        assert not reply.failed
        return reply.lines

    def _take(self, data: bytes) -> None:
        self.output += data

    def _lose(self) -> None:
        self.losses += 1

    def close(self) -> None:
        self.control.close()
        for descriptor in (*self._signals, self.commands):
            os.close(descriptor)
        self.host.close()
        self._slot.close()


@pytest.fixture
def tmux() -> Iterator[Tmux]:
    tmux = Tmux()
    yield tmux
    tmux.close()
    os.close(tmux.replies)


def test_a_reply_is_what_stands_between_its_own_marks(tmux: Tmux) -> None:
    tmux.say(b"%begin 5 1 0", b"not ours", b"%end 5 1 0", b"%window-add @0")
    tmux.say(b"%begin 5 2 1", b"a", b"%end 5 1 1", b"%error 6 2 1", b"%output %0 x", b"%end 5 2 1")
    assert tmux.ask(b"capture") == [b"a", b"%end 5 1 1", b"%error 6 2 1", b"%output %0 x"]
    assert os.read(tmux.commands, 100) == b"capture\n"
    assert tmux.output == b""


def test_a_client_is_attached_once_it_is_told_its_session(tmux: Tmux) -> None:
    tmux.say(b"%begin 5 1 0", b"%session-changed not yet", b"%end 5 1 0", b"%sessions-changed")
    tmux.control.attach(time.monotonic() + 0.05)
    assert not tmux.control.is_attached
    tmux.say(b"%session-changed $0 0")
    tmux.control.attach(time.monotonic() + 5)
    assert tmux.control.is_attached


def test_an_error_is_a_reply(tmux: Tmux) -> None:
    tmux.say(b"%begin 5 2 1", b"no such thing", b"%error 5 2 1")
    reply = tmux.control.ask(b"x", time.monotonic() + 5)
    assert reply.failed
    assert reply.lines == [b"no such thing"]


def test_commands_that_go_together_are_one_writing_and_the_first_to_fail_speaks_for_all(
    tmux: Tmux,
) -> None:
    tmux.say(b"%begin 5 2 1", b"%end 5 2 1", b"%begin 5 3 1", b"no such key", b"%error 5 3 1")
    tmux.say(b"%output %0 between", b"%begin 5 4 1", b"fine", b"%end 5 4 1")
    reply = tmux.control.ask_together((b"a", b"b", b"c"), time.monotonic() + 5)
    assert reply.failed
    assert reply.lines == [b"no such key"]
    assert os.read(tmux.commands, 100) == b"a\nb\nc\n"
    assert tmux.output == b"between"


def test_output_of_the_pane_is_unescaped(tmux: Tmux) -> None:
    tmux.say(b"%output %0 a\\033[1m\\134n \xc3\xa9", b"%output %1 other", b"%output %0 ")
    tmux.say(b"%extended-output %0 12 : b : c\\015\\012")
    tmux.say(b"%begin 5 2 1", b"%end 5 2 1")
    tmux.ask()
    assert tmux.output == b"a\x1b[1m\\n \xc3\xa9b : c\r\n"


def test_a_pause_is_noted_and_ended(tmux: Tmux) -> None:
    tmux.say(b"%pause %0", b"%begin 5 2 1", b"1", b"%end 5 2 1")
    tmux.say(b"%begin 5 3 1", b"%end 5 3 1")
    assert tmux.ask() == [b"1"]
    assert os.read(tmux.commands, 100) == b"x\nrefresh-client -A %0:continue\n"
    assert tmux.losses == 1


def test_an_end_is_noticed_and_says_why(tmux: Tmux) -> None:
    tmux.say(b"some trouble", b"%exit server exited unexpectedly")
    os.close(tmux.replies)
    tmux.replies = os.open("/dev/null", os.O_WRONLY)
    with pytest.raises(TmuxGoneError, match="some trouble\nserver exited unexpectedly"):
        tmux.ask()
    assert tmux.control.has_ended


def test_no_answer_in_time_is_an_end(tmux: Tmux) -> None:
    with pytest.raises(TmuxGoneError):
        tmux.ask(within_s=0.01)
    assert tmux.control.has_ended


def test_a_request_can_be_withdrawn_while_tmux_thinks(tmux: Tmux) -> None:
    tmux.host.sendall(frames.encode(frames.CANCEL, request_id=7))
    with pytest.raises(WithdrawnError):
        tmux.ask()
    tmux.say(b"%begin 5 2 1", b"late", b"%end 5 2 1", b"%begin 5 3 1", b"next", b"%end 5 3 1")
    assert tmux.ask() == [b"next"]


def test_a_line_without_end_is_the_end(tmux: Tmux) -> None:
    for _ in range(40):
        os.write(tmux.replies, b"x" * 60_000)
        tmux.control._take_in(1)
    assert tmux.control.has_ended


@given(
    st.lists(
        st.sampled_from(
            b"%begin|%end|%error|%output|%extended-output|%pause|%exit| |%0|5 2 1|\\|\\9|\\777|:|\n|\0|\xff".split(
                b"|"
            )
        )
    )
)
def test_nonsense_breaks_nothing(parts: list[bytes]) -> None:
    tmux = Tmux()
    os.write(tmux.replies, b"".join(parts) + b"\n")
    tmux.control._take_in(1)
    tmux.close()
    os.close(tmux.replies)
