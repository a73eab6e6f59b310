"""The first process of a slot: takes requests one at a time, answers them, and is the only thing that stays.

Under bubblewrap it is pid 1 of the slot's pid namespace, so nothing inside can signal it, and when it ends the kernel
ends everything else. It makes itself uninspectable, so commands of the same user can neither trace it nor reach its
descriptors: a slot cannot forge its own results.
"""

from __future__ import annotations

import os
import sys

from . import frames
from .lean import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    child_signals,
    json_dumps,
    json_loads,
    prctl,
    write_all,
)
from .refusal import RefusedError
from .slot_exec import Executor, OomScore
from .slot_files import Workspace
from .slot_processes import Descendants, PidNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Tuple, Union

    Answer = Tuple[bytes, bytes, int]

MAX_REMEMBERED_BYTES = 256 << 10
"""Answers kept for repeated requests, all together; the latest is kept up to `MAX_REMEMBERED_ANSWER`."""
MAX_REMEMBERED_ANSWER = 1 << 20
MAX_REMEMBERED = 16
_READ_SIZE = 1 << 16


class HostGoneError(Exception):
    """The stream to the host has ended: so does the slot."""


class Link:
    """The slot's end of the stream to its host."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._reader = frames.FrameReader()
        self._waiting: List[frames.Frame] = []

    def next(self) -> frames.Frame:
        """The next frame. Raises `HostGoneError`."""
        while not self._waiting:
            self._receive()
        return self._waiting.pop(0)

    def cancelled(self, request_id: int) -> bool:
        """Take in what has arrived; whether it withdraws that request. Call when the stream is readable."""
        self._receive()
        for frame in self._waiting:
            if frame.kind == frames.CANCEL and frame.request_id == request_id:
                self._waiting.remove(frame)
                return True
        return False

    def send(self, data: bytes) -> None:
        """Send one frame; waits while the host does not read. Raises `HostGoneError`."""
        try:
            write_all(self.fd, data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise HostGoneError from error

    def _receive(self) -> None:
        try:
            data = os.read(self.fd, _READ_SIZE)
        except ConnectionResetError:
            data = b""
        if not data:
            raise HostGoneError
        self._waiting += self._reader.feed(data)


class Memory:
    """Answers to what changed something, so that a repeated request is answered and not run again. Bounded."""

    def __init__(self) -> None:
        self._answers: Dict[Union[int, str], Answer] = {}
        self._bytes = 0

    def find(self, key: Union[int, str]) -> Union[Answer, None]:
        """The answer given before, if the request ran (or a note that it ran, where the answer was too long)."""
        return self._answers.get(key)

    def keep(self, key: Union[int, str], answer: Answer) -> None:
        """Remember an answer, forgetting the oldest ones beyond the bounds."""
        if len(answer[1]) > MAX_REMEMBERED_ANSWER:
            message = "it ran before; its output is no longer kept"
            answer = (json_dumps({"failure": "too_large", "message": message}), b"", 0)
        self._answers[key] = answer
        self._bytes += _weight(answer)
        while len(self._answers) > 1 and (
            self._bytes > MAX_REMEMBERED_BYTES or len(self._answers) > MAX_REMEMBERED
        ):
            oldest = next(iter(self._answers))
            self._bytes -= _weight(self._answers.pop(oldest))


def _weight(answer: Answer) -> int:
    return len(answer[0]) + len(answer[1])


class SlotInit:
    """Answers requests until the host is gone."""

    def __init__(self, link: Link, setup: Dict[str, Any]) -> None:
        self._link = link
        self._in_namespace = setup["isolation"] == "bubblewrap"
        self._processes = PidNamespace() if self._in_namespace else Descendants()
        oom_score = OomScore()
        prctl(PR_SET_DUMPABLE, 0)
        if not self._in_namespace:
            prctl(PR_SET_CHILD_SUBREAPER, 1)
        _limit_processes(setup.get("max_processes"))
        self._folder: str = setup["folder"]
        self._workspace = Workspace(setup["workspace"])
        os.chdir(setup["workspace"])
        self._executor = Executor(
            link,
            self._workspace,
            self._processes,
            shell=_shell(),
            env=setup["env"],
            child_signals=child_signals(),
            oom_score=oom_score,
        )
        self._memory = Memory()
        self._operations: Dict[str, Callable[[Dict[str, Any], bytes], Tuple[bytes, bytes]]] = {
            "read": lambda header, _: self._workspace.read(header),
            "write": self._workspace.write,
            "list": lambda header, _: self._workspace.list_folder(header),
            "archive": self._archive,
            "kill": self._kill,
        }

    def serve(self) -> None:
        """Answer requests, one after the other. Ends by `HostGoneError`."""
        while True:
            frame = self._link.next()
            if frame.kind == frames.REQUEST:
                header, body, flags = self._answer(frame)
                self._link.send(
                    frames.encode(
                        frames.REPLY,
                        channel=frame.channel,
                        request_id=frame.request_id,
                        header=header,
                        body=body,
                        flags=flags,
                    )
                )

    def end(self) -> None:
        """Leave nothing behind: a pid namespace sees to that itself."""
        if not self._in_namespace:
            from .trees import remove_tree  # noqa: PLC0415 - few slots ever need it

            self._processes.kill_all()
            os.chdir("/")
            remove_tree(self._folder)

    def _answer(self, frame: frames.Frame) -> Answer:
        header = json_loads(frame.header.decode("ascii"))
        operation = header["op"]
        if operation in ("read", "list", "archive"):
            return self._run(frame.request_id, header, frame.body)
        key = header.get("key", frame.request_id)
        answer = self._memory.find(key)
        if answer is None:
            answer = self._run(frame.request_id, header, frame.body)
            self._memory.keep(key, answer)
        return answer

    def _run(self, request_id: int, header: Dict[str, Any], body: bytes) -> Answer:
        try:
            if header["op"] == "exec":
                return self._executor.execute(request_id, header, body)
            return (*self._operations[header["op"]](header, body), 0)
        except RefusedError as failure:
            return json_dumps({"failure": failure.kind, "message": failure.message}), b"", 0

    def _archive(self, header: Dict[str, Any], _: bytes) -> Tuple[bytes, bytes]:
        from .slot_archive import pack  # noqa: PLC0415 - few slots ever need it

        return pack(self._workspace, header)

    def _kill(self, _: Dict[str, Any], __: bytes) -> Tuple[bytes, bytes]:
        return b'{"killed":%d}' % len(self._processes.kill_all()), b""


def _limit_processes(limit: Union[int, None]) -> None:
    """Set inside the slot's user namespace, where the kernel counts that namespace's processes alone."""
    if limit:
        import resource  # noqa: PLC0415 - few slots ever need it

        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def _shell() -> str:
    for path in ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/sh"):
        if os.access(path, os.X_OK):
            return path
    raise FileNotFoundError("no bash and no /bin/sh in the slot")


def main() -> None:
    """Run as the slot's first process; the stream to the host is the descriptor named by the first argument."""
    link = Link(int(sys.argv[1]))
    os.set_inheritable(link.fd, False)
    try:
        setup = link.next()
        settings = json_loads(setup.header.decode("ascii"))
        init = SlotInit(link, settings)
        report = _report(settings)
        link.send(
            frames.encode(
                frames.READY, channel=setup.channel, header=json_dumps(report) if report else b"{}"
            )
        )
        try:
            init.serve()
        finally:
            init.end()
    except HostGoneError:
        return


def _report(settings: Dict[str, Any]) -> Dict[str, Any]:
    """What is in force here, seen from inside; only when asked, as looking takes time."""
    if not settings.get("report"):
        return {}
    from .slot_report import report  # noqa: PLC0415 - few slots ever need it

    return report(settings["workspace"])
