"""Work of the init's own that may take for ever, done in a process that can be killed.

The child is a copy of the init, so it is as uninspectable and its answer as unforgeable; what it imports and allocates
goes with it. It is the first to be killed when memory runs out.
"""

from __future__ import annotations

import os
import select
import time

from .lean import SIGKILL, prctl
from .refusal import RefusedError, from_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn, Tuple

    from .slot_exec import OomScore
    from .slot_init import Link

MAX_MEMORY = 2 << 30
"""Address space of a child: where no memory limit is in force, a search still has one."""
_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 16
_ANSWER, _REFUSAL, _FAULT = b"+", b"-", b"!"


def run_in_child(
    work: Callable[[], Tuple[bytes, bytes]],
    *,
    link: Link,
    request_id: int,
    timeout_s: float,
    oom_score: OomScore,
) -> Tuple[bytes, bytes]:
    """Do `work`, which gives header and body of an answer, within a deadline.

    Raises `RefusedError`: what `work` raised, or because it took too long, was killed or withdrawn.
    Anything else that `work` raised is a fault of ours: `RuntimeError`.
    """
    deadline = time.monotonic() + timeout_s
    try:
        pid, reading = _start(work, link, oom_score)
    except OSError as error:
        failure = from_os_error(error, "cannot start the search")
        raise RefusedError("cannot_start", failure.message) from error
    try:
        answer = _receive(reading, link, request_id, deadline, timeout_s)
    finally:
        os.close(reading)
        os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)
    return _unpacked(answer)


def _start(
    work: Callable[[], Tuple[bytes, bytes]], link: Link, oom_score: OomScore
) -> Tuple[int, int]:
    reading, writing = os.pipe()
    oom_score.raise_for_children()
    try:
        pid = os.fork()
        if pid == 0:
            _be_the_child(work, writing, (reading, link.fd))
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
        oom_score.restore()
    return pid, reading


def _be_the_child(
    work: Callable[[], Tuple[bytes, bytes]], writing: int, not_ours: Tuple[int, ...]
) -> NoReturn:
    status = 1
    try:
        for descriptor in not_ours:
            os.close(descriptor)
        prctl(_PR_SET_PDEATHSIG, SIGKILL)
        _send(writing, _packed(work))
        status = 0
    finally:
        os._exit(status)


def _limit_memory() -> None:
    import resource  # noqa: PLC0415 - few slots ever need it

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MAX_MEMORY if most == resource.RLIM_INFINITY else min(most, MAX_MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _packed(work: Callable[[], Tuple[bytes, bytes]]) -> bytes:
    try:
        _limit_memory()
        header, body = work()
    except RefusedError as refused:
        text = refused.kind + "\n" + refused.message
        return _REFUSAL + text.encode("utf-8", "surrogateescape")
    except MemoryError:
        return _REFUSAL + b"cannot_start\nthe search needs more memory than it may have"
    except Exception as error:  # noqa: BLE001 - the parent raises it
        return _FAULT + repr(error).encode("utf-8", "backslashreplace") + b"\n"
    return _ANSWER + header + b"\n" + body


def _send(writing: int, answer: bytes) -> None:
    sent = memoryview(len(answer).to_bytes(8, "big") + answer)
    while sent:
        sent = sent[os.write(writing, sent) :]


def _receive(reading: int, link: Link, request_id: int, deadline: float, timeout_s: float) -> bytes:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(link.fd, select.POLLIN)
    received = bytearray()
    withdrawn = link.withdrawn(request_id)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise RefusedError("timed_out", "the search did not end within %g s" % timeout_s)
        if withdrawn:
            raise RefusedError("timed_out", "the search was withdrawn")
        for fd, _ in poll.poll(left * 1000 + 1):
            if fd == link.fd:
                withdrawn = link.cancelled(request_id)
            if fd == reading:
                data = os.read(reading, _CHUNK)
                if not data:
                    return _whole(bytes(received))
                received += data


def _whole(received: bytes) -> bytes:
    if len(received) < 8 or len(received) - 8 != int.from_bytes(received[:8], "big"):
        raise RefusedError(
            "cannot_start", "the search was killed before its end, perhaps for want of memory"
        )
    return received[8:]


def _unpacked(answer: bytes) -> Tuple[bytes, bytes]:
    head, _, rest = answer[1:].partition(b"\n")
    if answer[:1] == _FAULT:
        raise RuntimeError("a search failed: " + head.decode("utf-8"))
    if answer[:1] == _REFUSAL:
        raise RefusedError(head.decode("ascii"), rest.decode("utf-8", "surrogateescape"))
    return head, rest
