"""Names for slots that are Unix users: each finds itself under `agent`, with its workspace as its home.

The root file system cannot be written, so no line of /etc/passwd can be. But the C libraries (glibc, musl) ask a name
service at `PLACE` if there is one, by the protocol of nscd, and so do all programs that look users up. This one answers
with what the files there say, and adds whoever asks. Only for itself: no slot finds out about another one.

It is a process without any rights, forked from the server, so that what slots send it reaches nobody who has some.
Where a library does not ask, slots' users have no name, and HOME, USER and LOGNAME alone.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import Dict, List, NamedTuple, Optional, Tuple

from .forked import become_helper

PLACE = "/var/run/nscd"
NAME = "agent"
_VERSION = 2
_REQUEST = struct.Struct("=iii")
_USER_BY_NAME, _USER_BY_ID, _GROUP_BY_NAME, _GROUP_BY_ID, _GROUPS_OF = 0, 1, 2, 3, 15
_MAX_KEY = 256
_MAX_CLIENTS = 64
_NOBODY = 65534
_CREDENTIALS = struct.Struct("=iii")


class User(NamedTuple):
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    comment: str
    home: str
    shell: str


class Group(NamedTuple):
    """A line of /etc/group."""

    name: str
    gid: int
    members: Tuple[str, ...]


class Names:
    """Who is who, for whoever asks. `folders` are the slots' workspaces."""

    def __init__(self, folders: List[str], etc: str = "/etc") -> None:
        self._folders = folders
        self._users = [_user(line) for line in _lines(os.path.join(etc, "passwd"), 7)]
        self._groups = [_group(line) for line in _lines(os.path.join(etc, "group"), 4)]

    def answer(self, kind: int, key: str, uid: int) -> bytes:
        """What the process of user `uid` hears that asks for `key`; empty: nothing, which makes it look elsewhere."""
        if kind in (_USER_BY_NAME, _USER_BY_ID):
            return _encoded_user(self._find_user(kind, key, uid))
        if kind in (_GROUP_BY_NAME, _GROUP_BY_ID):
            return _encoded_group(self._find_group(kind, key, uid))
        if kind == _GROUPS_OF:
            return _encoded_groups(self._groups_of(key, uid))
        return b""

    def _find_user(self, kind: int, key: str, uid: int) -> Optional[User]:
        asker = self._asker(uid)
        known = [*self._users, asker] if asker is not None else self._users
        if kind == _USER_BY_NAME:
            return next((user for user in known if user.name == key), None)
        return next((user for user in known if str(user.uid) == key), None)

    def _find_group(self, kind: int, key: str, uid: int) -> Optional[Group]:
        asker = self._asker(uid)
        known = self._groups
        if asker is not None:
            known = [*known, Group(asker.name, asker.gid, ())]
        if kind == _GROUP_BY_NAME:
            return next((group for group in known if group.name == key), None)
        return next((group for group in known if str(group.gid) == key), None)

    def _groups_of(self, name: str, uid: int) -> Optional[List[int]]:
        user = self._find_user(_USER_BY_NAME, name, uid)
        if user is None:
            return None
        return [user.gid, *(group.gid for group in self._groups if name in group.members)]

    def _asker(self, uid: int) -> Optional[User]:
        home = self._home(uid)
        return User(NAME, uid, uid, "", home, "/bin/sh") if home else None

    def _home(self, uid: int) -> str:
        """The workspace of a slot's user. A slot's folders can be passed by its group alone, or are its own."""
        for folder in self._folders:
            for place in (folder, os.path.dirname(folder)):
                try:
                    info = os.stat(place)
                except OSError:
                    continue
                if uid and uid in (info.st_uid, info.st_gid):
                    return folder
        return ""


def _lines(path: str, parts: int) -> List[List[str]]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip("\n").split(":") for line in file]
    except OSError:
        return []
    return [line for line in lines if len(line) == parts and _is_id(line[2])]


def _is_id(text: str) -> bool:
    """Whether the kernel knows such a number: an image's files may hold anything."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 1 << 32


def _user(line: List[str]) -> User:
    gid = int(line[3] if _is_id(line[3]) else line[2])
    return User(line[0], int(line[2]), gid, line[4], line[5], line[6])


def _group(line: List[str]) -> Group:
    return Group(line[0], int(line[2]), tuple(filter(None, line[3].split(","))))


def _encoded_user(user: Optional[User]) -> bytes:
    if user is None:
        return struct.pack("=9i", _VERSION, 0, 0, 0, -1, -1, 0, 0, 0)
    name, word, comment, home, shell = (
        text.encode("utf-8") + b"\0"
        for text in (user.name, "x", user.comment, user.home, user.shell)
    )
    sizes = (len(name), len(word), user.uid, user.gid, len(comment), len(home), len(shell))
    head = struct.pack("=4i2I3i", _VERSION, 1, *sizes)
    return head + name + word + comment + home + shell


def _encoded_group(group: Optional[Group]) -> bytes:
    if group is None:
        return struct.pack("=6i", _VERSION, 0, 0, 0, -1, 0)
    name, word = group.name.encode("utf-8") + b"\0", b"x\0"
    members = [member.encode("utf-8") + b"\0" for member in group.members]
    head = struct.pack("=4iIi", _VERSION, 1, len(name), len(word), group.gid, len(members))
    sizes = struct.pack("=%di" % len(members), *map(len, members))
    return head + sizes + name + word + b"".join(members)


def _encoded_groups(groups: Optional[List[int]]) -> bytes:
    if groups is None:
        return struct.pack("=3i", _VERSION, 0, 0)
    return struct.pack("=3i%dI" % len(groups), _VERSION, 1, len(groups), *groups)


# --- The process ----------------------------------------------------------------------------------


class _Service:
    """Answers one request for each connection, however slowly it comes."""

    def __init__(self, listener: socket.socket, names: Names) -> None:
        self._listener = listener
        self._names = names
        self._poll = select.poll()
        self._poll.register(listener.fileno(), select.POLLIN)
        self._clients: Dict[int, Tuple[socket.socket, bytes]] = {}
        """By descriptor, oldest first: the connection, and what has come of its request."""

    def serve(self) -> None:
        """Until the process is ended."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._clients:
                    self._read(descriptor)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        client.setblocking(False)
        if len(self._clients) >= _MAX_CLIENTS:
            self._drop(next(iter(self._clients)))
        self._clients[client.fileno()] = (client, b"")
        self._poll.register(client.fileno(), select.POLLIN)

    def _read(self, descriptor: int) -> None:
        client, before = self._clients[descriptor]
        try:
            data = client.recv(_REQUEST.size + _MAX_KEY)
            request = before + data
            if data and not _is_whole(request):
                self._clients[descriptor] = (client, request)
                return
            if data:
                client.send(self._answer(client, request))
        except (OSError, ValueError):
            pass  # its own affair
        self._drop(descriptor)

    def _answer(self, client: socket.socket, request: bytes) -> bytes:
        _, kind, size = _REQUEST.unpack_from(request)
        key = request[_REQUEST.size : _REQUEST.size + size].rstrip(b"\0").decode("utf-8", "replace")
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return self._names.answer(kind, key, _CREDENTIALS.unpack(peer)[1] & 0xFFFFFFFF)

    def _drop(self, descriptor: int) -> None:
        client, _ = self._clients.pop(descriptor)
        self._poll.unregister(descriptor)
        client.close()


def _is_whole(request: bytes) -> bool:
    """Raises `ValueError` for what will never be a request."""
    if len(request) < _REQUEST.size:
        return False
    version, _, size = _REQUEST.unpack_from(request)
    if version != _VERSION or not 0 <= size <= _MAX_KEY:
        raise ValueError("no request of this protocol")
    return bool(len(request) >= _REQUEST.size + size)


def start(folders: List[str]) -> bool:
    """Serve names from now on, in a process that ends with this one. False where there is no place for it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = os.path.join(PLACE, "socket")
    try:
        os.makedirs(PLACE, 0o755, exist_ok=True)
        if os.path.exists(path):
            os.unlink(path)  # of a server that was here before, and is no more
        listener.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - everyone may ask
        listener.listen(_MAX_CLIENTS)
        listener.setblocking(False)
        names = Names(folders)
        parent = os.getpid()
        if os.fork() == 0:
            _be_the_service(listener, names, parent)
    except OSError:
        return False
    finally:
        listener.close()
    return True


def _be_the_service(listener: socket.socket, names: Names, parent: int) -> None:
    try:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        if become_helper(parent, listener.fileno()):
            _Service(listener, names).serve()
    finally:
        os._exit(1)
