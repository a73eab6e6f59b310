"""The first process of a slot: takes requests one at a time, answers them, and is the only thing that stays.

Under bubblewrap it is pid 1 of the slot's pid namespace, so nothing inside can signal it, and when it ends the kernel
ends everything else; where slots are users it is a user apart (`slot_user.py`). It makes itself uninspectable, so
commands of the same user can neither trace it nor reach its descriptors: a slot cannot forge its own results.

Where many slots are at work, each request finds the memory of its init in no cache. What it costs then is the code that
it comes through, three times what the same code costs when it is run at once again: so its steps are few.
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
from .slot_processes import Descendants, OneUser, PidNamespace
from .slot_spawn import Spawner
from .slot_user import SlotUser
from .slot_watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple, Union

    from .slot_terminals import Terminals

    Answer = Tuple[bytes, bytes, int]

MAX_REMEMBERED_BYTES = 256 << 10
"""Answers kept for repeated requests, all together; the latest is kept up to `MAX_REMEMBERED_ANSWER`."""
MAX_REMEMBERED_ANSWER = 1 << 20
MAX_REMEMBERED = 16
_READ_SIZE = 1 << 16
_ONLY_READING = frozenset(("read", "list", "archive", "view", "glob", "grep"))
_TERMINAL_OPERATIONS = frozenset(("shell", "tmux", "recording"))
_MSG_CMSG_CLOEXEC = 0x40000000


class HostGoneError(Exception):
    """The stream to the host has ended: so does the slot."""


class Link:
    """The slot's end of the stream to its host."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._reader = frames.FrameReader()
        self._waiting: List[frames.Frame] = []

    @property
    def has_waiting(self) -> bool:
        """Whether `next` gives a frame at once."""
        return bool(self._waiting)

    def next(self) -> frames.Frame:
        """The next frame. Raises `HostGoneError`."""
        while not self._waiting:
            self._receive()
        return self._waiting.pop(0)

    def cancelled(self, request_id: int) -> bool:
        """Take in what has arrived; whether it withdraws that request. Call when the stream is readable."""
        self._receive()
        return self.withdrawn(request_id)

    def withdrawn(self, request_id: int) -> bool:
        """Whether what has arrived before withdraws that request: it may have come together with it."""
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

    def receive_descriptor(self, channel: int) -> int:
        """Have the host pass a descriptor, in the middle of a request of its own. Raises `HostGoneError`."""
        import _socket  # noqa: PLC0415 - few slots ever need it

        self.send(frames.encode(frames.READY, channel=channel))
        stream = _socket.socket(fileno=self.fd)
        try:
            _, extra, _, _ = stream.recvmsg(1, _socket.CMSG_SPACE(4), _MSG_CMSG_CLOEXEC)
        finally:
            stream.detach()
        if not extra:
            raise HostGoneError
        return int.from_bytes(extra[0][2][:4], sys.byteorder)

    def pass_descriptors(self, frame: bytes, descriptors: List[int]) -> None:
        """Send a short frame together with descriptors. Raises `HostGoneError`."""
        import _socket  # noqa: PLC0415 - few slots ever need it

        rights = b"".join(each.to_bytes(4, sys.byteorder) for each in descriptors)
        stream = _socket.socket(fileno=self.fd)
        try:
            sent = stream.sendmsg([frame], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise HostGoneError from error
        finally:
            stream.detach()
        if sent < len(frame):
            self.send(frame[sent:])

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
        self._bytes += len(answer[0]) + len(answer[1])
        while (self._bytes > MAX_REMEMBERED_BYTES or len(self._answers) > MAX_REMEMBERED) and len(
            self._answers
        ) > 1:
            header, body, _ = self._answers.pop(next(iter(self._answers)))
            self._bytes -= len(header) + len(body)


class SlotInit:
    """Answers requests until the host is gone."""

    def __init__(self, link: Link, setup: Dict[str, Any]) -> None:
        self._link = link
        self._in_namespace = setup["isolation"] == "bubblewrap"
        _limit_processes(setup.get("max_processes"))
        user = SlotUser(*setup["user"]) if setup.get("user") else None
        self._processes = _processes_of_slot(self._in_namespace, user)
        self._oom_score = OomScore()
        if user is not None:
            user.become_init()
        prctl(PR_SET_DUMPABLE, 0)
        if not self._in_namespace:
            prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._folder: str = setup["folder"]
        self._workspace = Workspace(setup["workspace"])
        os.chdir(setup["workspace"])
        self._watch = Watch(link.fd, child_signals())
        self._spawner = Spawner(self._oom_score, user)
        self._executor = Executor(
            link,
            self._workspace,
            self._processes,
            shell=_shell(),
            env=setup["env"],
            watch=self._watch,
            spawner=self._spawner,
        )
        self._terminals: Optional[Terminals] = None
        self._lends = bool(setup.get("lends"))
        self._env: Dict[str, str] = setup["env"]
        self._memory = Memory()
        self._operations: Dict[str, Callable[[Dict[str, Any], bytes], Tuple[bytes, bytes]]] = {
            "read": lambda header, _: self._workspace.read(header),
            "write": self._workspace.write,
            "list": lambda header, _: self._workspace.list_folder(header),
            "archive": self._archive,
            "edit": self._edit,
            "view": self._view,
            "kill": self._kill,
            "reopen": self._reopen,
            "pack": self._pack,
            "unpack": self._unpack,
        }

    def serve(self) -> None:
        """Answer requests, one after the other. Ends by `HostGoneError`."""
        while True:
            if self._terminals is not None and not self._link.has_waiting:
                self._terminals.idle()
            frame = self._link.next()
            if frame.kind == frames.REQUEST:
                if self._terminals is not None:
                    self._terminals.take_back(None)
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
                if self._lends and self._terminals is not None and not self._link.has_waiting:
                    self._terminals.lend(frame.channel)
            elif frame.kind == frames.GIVE_BACK and self._terminals is not None:
                from .shell_loan import decode  # noqa: PLC0415 - few slots ever need it

                returned = decode(frame.header, frame.body) if frame.header else None
                self._terminals.take_back(returned)

    def end(self) -> None:
        """Leave nothing behind: a pid namespace sees to that itself; a user's folders are the host's to empty."""
        if not self._in_namespace:
            self._processes.kill_all()
        if self._folder:
            from .trees import remove_tree  # noqa: PLC0415 - few slots ever need it

            os.chdir("/")
            remove_tree(self._folder)

    def _answer(self, frame: frames.Frame) -> Answer:
        header = json_loads(frame.header.decode("ascii"))
        operation = header["op"]
        if operation in _ONLY_READING:
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
            if header["op"] in _TERMINAL_OPERATIONS:
                terminals = self._terminals or self._begin_terminals()
                return terminals.answer(request_id, header, body)
            if header["op"] in ("glob", "grep"):
                return (*self._search(request_id, header), 0)
            return (*self._operations[header["op"]](header, body), 0)
        except RefusedError as failure:
            return json_dumps({"failure": failure.kind, "message": failure.message}), b"", 0

    def _archive(self, header: Dict[str, Any], _: bytes) -> Tuple[bytes, bytes]:
        from .slot_archive import pack  # noqa: PLC0415 - few slots ever need it

        return pack(self._workspace, header)

    def _edit(self, header: Dict[str, Any], body: bytes) -> Tuple[bytes, bytes]:
        from .slot_edit import edit  # noqa: PLC0415 - few slots ever need it

        return edit(self._workspace, header, body)

    def _view(self, header: Dict[str, Any], _: bytes) -> Tuple[bytes, bytes]:
        from .slot_edit import view  # noqa: PLC0415 - few slots ever need it

        return view(self._workspace, header)

    def _search(self, request_id: int, header: Dict[str, Any]) -> Tuple[bytes, bytes]:
        from . import slot_search  # noqa: PLC0415 - few slots ever need it
        from .slot_child import run_in_child  # noqa: PLC0415

        search = slot_search.glob if header["op"] == "glob" else slot_search.grep
        return run_in_child(
            lambda: search(self._workspace, header),
            link=self._link,
            request_id=request_id,
            timeout_s=header["timeout"],
            oom_score=self._oom_score,
        )

    def _begin_terminals(self) -> Terminals:
        from .slot_session import Surroundings  # noqa: PLC0415 - few slots ever need it
        from .slot_terminals import Terminals  # noqa: PLC0415

        self._terminals = Terminals(
            Surroundings(self._link, self._watch, self._processes, self._spawner, self._env)
        )
        return self._terminals

    def _reopen(self, _: Dict[str, Any], __: bytes) -> Tuple[bytes, bytes]:
        """The host has mounted something over the workspace."""
        self._workspace.reopen()
        os.chdir(self._workspace.path)
        return b"{}", b""

    def _pack(self, header: Dict[str, Any], _: bytes) -> Tuple[bytes, bytes]:
        from .slot_snapshot import pack  # noqa: PLC0415 - few slots ever need it

        target = self._link.receive_descriptor(header["channel"])
        try:
            entries = pack(self._workspace.fd, target, header["max"])
        finally:
            os.close(target)
        return b'{"entries":%d}' % entries, b""

    def _unpack(self, header: Dict[str, Any], _: bytes) -> Tuple[bytes, bytes]:
        from .slot_snapshot import unpack  # noqa: PLC0415 - few slots ever need it

        source = self._link.receive_descriptor(header["channel"])
        try:
            entries = unpack(self._workspace.fd, source)
        finally:
            os.close(source)
        return b'{"entries":%d}' % entries, b""

    def _kill(self, _: Dict[str, Any], __: bytes) -> Tuple[bytes, bytes]:
        killed = len(self._processes.kill_all())
        if self._terminals is not None:
            self._terminals.end()
        return b'{"killed":%d}' % killed, b""


def _processes_of_slot(
    in_namespace: bool, user: Union[SlotUser, None]
) -> Union[PidNamespace, OneUser, Descendants]:
    if in_namespace:
        return PidNamespace()
    return Descendants() if user is None or user.is_root else OneUser(user)


def _limit_processes(limit: Union[int, None]) -> None:
    """Counted are the processes of the slot's user namespace, or of its user: never those of others."""
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
    run(int(sys.argv[1]))


def run(stream: int) -> None:
    """Be the slot's first process until the host is gone, whose end of `stream` says so."""
    link = Link(stream)
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

    return report(settings["workspace"], settings["env"]["PATH"])
