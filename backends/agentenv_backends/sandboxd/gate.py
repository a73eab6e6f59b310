"""The gate of a host that is reached over TCP: lets one driver in at a time, and becomes its sandbox server.

    python3 -I -S gate.py --key FILE --host ID --bind ADDRESS --port N --folder DIR --patience S

A host in a cluster is started by a scheduler, not by its driver, so its main process waits. This file is all that has
to be there: the server itself is sent by the driver, so that the host's image need not be built for it. A line of JSON
each way, then the program:

    host    {"gate": 1, "nonce": N}
    driver  {"host": ID, "nonce": M, "who": W, "program": SHA-256, "proof": HMAC(key, "driver", N, M, ID, W, SHA-256)}
    host    {"proof": HMAC(key, "host", N, M, ID, W, SHA-256), "folder": DIR, "ids": K, "directory": D}
            or {"refused": R, "message": T}
    driver  length u64 | program

So each end knows that the other has the run's key, which is never sent; that the driver means this very host, and not
the one that had its address before; and that the program is the driver's. What follows on the connection is neither
encrypted nor signed. Without a driver for `--patience` seconds the process ends, for good.

Nothing of this package is imported here: the file stands alone, for Python 3.8 or newer.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import select
import signal
import socket
import sys
import time
from typing import Any, Dict, NoReturn, Tuple

VERSION = 1
HANDSHAKE_S = 10
MAX_LINE = 4096
MAX_PROGRAM = 64 << 20
_PENDING = 32
"""Connections that may be in their handshakes, or refused, at once."""
_LOOK_S = 0.25
_GOODBYE_S = 4.0
_REFUSED = 77
"""Exit code of a child that let nobody in."""
_PR_SET_PDEATHSIG = 1
_KEPT_VARIABLES = ("PATH", "TMPDIR", "LANG", "LC_ALL")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Refusal(Exception):  # noqa: N818 - not a fault of this program: an answer
    """The driver is not let in."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Hangup(Exception):  # noqa: N818 - see above
    """Whoever connected is not answered any further."""


class Ending(Exception):  # noqa: N818 - see above
    """The process ends."""


def proof(key: bytes, role: str, *parts: str) -> str:
    """What shows that `role` has the key. No part may hold a line break."""
    text = "\n".join((role, *parts)).encode("utf-8")
    return hmac.new(key, text, hashlib.sha256).hexdigest()


class Gate:
    """Accepts connections; a child each shakes hands and, let in, turns into the sandbox server."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._host: str = options.host
        self._folder: str = options.folder
        self._patience_s: float = options.patience
        self._dropped: Tuple[str, ...] = tuple(options.drop)
        self._lock_path = os.path.join(options.folder, "gate.lock")
        self._abandoned_path = os.path.join(options.keep or options.folder, "abandoned")
        with open(options.key, encoding="ascii") as file:
            self._key = file.read().strip().encode("ascii")
        if len(self._key) < 32:
            sys.exit("gate: the key in %s is too short: 32 characters at least" % options.key)
        self._listener = socket.socket(socket.AF_INET6 if ":" in options.bind else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((options.bind, options.port))
        self._listener.listen(_PENDING)
        self._children: Dict[int, float] = {}
        self._last_used = time.monotonic()

    def run(self) -> None:
        """Serve until told to end, abandoned, or left with something that a server did not clear away."""
        if os.path.exists(self._abandoned_path):
            sys.exit("gate: no driver came for this host; it stays ended")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _end)
        try:
            while True:
                self._turn()
        except Ending:
            self._end_children()

    def _turn(self) -> None:
        ready, _, _ = select.select([self._listener], [], [], _LOOK_S)
        if ready:
            self._accept()
        self._reap()
        if self._children and self._is_taken():
            self._last_used = time.monotonic()
        elif time.monotonic() - self._last_used > self._patience_s:
            with open(self._abandoned_path, "w", encoding="ascii"):
                pass
            sys.exit("gate: no driver for %g s; this host ends" % self._patience_s)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it was gone again
        with connection:
            if len(self._children) < _PENDING:
                pid = os.fork()
                if not pid:
                    self._serve(connection)
                self._children[pid] = time.monotonic()

    def _reap(self) -> None:
        for pid in list(self._children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self._children[pid]
            if not _ended_well(status):
                # Something of its slots may be left: whoever started this process has the means to end it all.
                sys.exit(
                    "gate: the sandbox server ended badly (status %d); so does this host" % status
                )

    def _is_taken(self) -> bool:
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return not _locked(lock)
        finally:
            os.close(lock)

    def _end_children(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for pid in self._children:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _GOODBYE_S
        while self._children and time.monotonic() < deadline:
            for pid in list(self._children):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del self._children[pid]
            time.sleep(0.01)

    # --- in a child -------------------------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket) -> NoReturn:
        try:
            self._listener.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.alarm(HANDSHAKE_S)  # whatever it waits for
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._let_in(connection)
        except (Hangup, OSError, ValueError, KeyError, TypeError) as error:
            sys.stderr.write("gate: a connection was dropped: %s\n" % error)
        finally:
            os._exit(_REFUSED)

    def _let_in(self, connection: socket.socket) -> None:
        nonce = secrets.token_hex(32)
        _send(connection, {"gate": VERSION, "nonce": nonce})
        said = json.loads(_line(connection))
        parts = (nonce, *(_plain(said[name]) for name in ("nonce", "host", "who", "program")))
        try:
            self._check(said, parts)
            lock = self._take(said["who"])
        except Refusal as refusal:
            _send(connection, {"refused": refusal.reason, "message": str(refusal)})
            return
        ours = proof(self._key, "host", *parts)
        told = {"folder": self._folder, "ids": _mapped_ids(), "directory": os.getcwd()}
        _send(connection, dict(told, proof=ours))
        program = _receive_program(connection, said["program"])
        signal.alarm(0)
        os.dup2(connection.fileno(), 0)
        os.set_inheritable(lock, True)  # held as long as the server lives
        path = "/proc/self/fd/%d" % program
        os.execve(sys.executable, [sys.executable, "-I", "-S", path], _environment(self._dropped))  # noqa: S606

    def _check(self, said: Dict[str, Any], parts: Tuple[str, ...]) -> None:
        if not hmac.compare_digest(proof(self._key, "driver", *parts), _plain(said["proof"])):
            raise Refusal("key", "the driver has another key than this host")
        if said["host"] != self._host:  # told to none but those who have the key
            raise Refusal("host", "this is host %s, not %s" % (self._host, said["host"]))

    def _take(self, who: str) -> int:
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _locked(lock):
            holder = os.pread(lock, MAX_LINE, 0).decode("utf-8", "replace")
            raise Refusal("taken", holder or "another driver")
        os.ftruncate(lock, 0)
        os.pwrite(lock, who.encode("utf-8"), 0)
        return lock


def _end(_number: int, _frame: Any) -> NoReturn:
    raise Ending


def _ended_well(status: int) -> bool:
    """Whether a child was a server that cleared away what it had made, or let nobody in."""
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGALRM  # a handshake that took too long
    return os.WEXITSTATUS(status) in (0, _REFUSED)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _send(connection: socket.socket, values: Dict[str, Any]) -> None:
    connection.sendall(json.dumps(values).encode("ascii") + b"\n")


def _line(connection: socket.socket) -> bytes:
    """A line, and not a byte more of what follows it."""
    line = b""
    while not line.endswith(b"\n"):
        seen = connection.recv(MAX_LINE, socket.MSG_PEEK)
        take = seen.find(b"\n") + 1 or len(seen)
        line += connection.recv(take)
        if not seen or len(line) > MAX_LINE:
            raise Hangup("it sent no line")
    return line


def _plain(value: Any) -> str:
    if not isinstance(value, str) or "\n" in value or len(value) > 512:
        raise Hangup("it sent what is no short line of text")
    return value


def _receive_program(connection: socket.socket, digest: str) -> int:
    size = int.from_bytes(b"".join(_pieces(connection, 8)), "big")
    if size > MAX_PROGRAM:
        raise Hangup("a program of %d bytes" % size)
    program = os.memfd_create("sandboxd", 0)  # inherited: it is what runs next
    seen = hashlib.sha256()
    with open(program, "wb", closefd=False) as file:
        for piece in _pieces(connection, size):
            seen.update(piece)
            file.write(piece)
    if not hmac.compare_digest(seen.hexdigest(), digest):
        raise Hangup("the program is not the one that was announced")
    return program


def _pieces(connection: socket.socket, size: int) -> Any:
    while size:
        piece = connection.recv(min(size, 1 << 16))
        if not piece:
            raise Hangup("it went before it had sent the sandbox server")
        size -= len(piece)
        yield piece


def _mapped_ids() -> int:
    """User ids there are here: those below this number."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [[int(number) for number in line.split()] for line in file]
    return max(first + size for first, _, size in ranges)


def _environment(dropped: Tuple[str, ...]) -> Dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    if dropped:
        kept = {name: text for name, text in os.environ.items() if not name.startswith(dropped)}
    return dict({"PATH": _DEFAULT_PATH}, **kept)


def _close_to_others(folders: Any) -> None:
    """Folders that every user may write are closed: what one slot left there would reach the next."""
    for path, mode in folders:
        try:
            os.chmod(path, mode)
        except OSError as error:
            sys.stderr.write("gate: %s stays as it is: %s\n" % (path, error))


def main() -> None:
    """Where the process begins."""
    parser = argparse.ArgumentParser(prog="gate")
    parser.add_argument("--key", required=True, help="file with the run's key")
    parser.add_argument("--host", required=True, help="what the driver knows this host by")
    parser.add_argument("--bind", required=True, help="address to listen on")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--folder", required=True, help="where the server may make slots' folders")
    parser.add_argument("--keep", default="", help="folder that outlives a restart of this process")
    parser.add_argument("--close", action="append", default=[], help="folder for nobody but us")
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="START",
        help="the server inherits every variable but those whose names begin so; without any, only a few",
    )
    parser.add_argument("--patience", required=True, type=float, help="seconds without a driver")
    options = parser.parse_args()
    _close_to_others([(options.folder, 0o711), *((path, 0o700) for path in options.close)])
    Gate(options).run()


if __name__ == "__main__":
    main()
