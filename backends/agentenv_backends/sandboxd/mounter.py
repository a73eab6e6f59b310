"""The server's end of its helper for mounts (`mounts.py`): starts it, asks it, hears of its end."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from typing import Any, Callable, Dict, Optional

from .loop import Loop
from .process import collect

Answer = Callable[[Dict[str, Any]], None]

_MESSAGE = 1 << 14
_TRIAL_S = 10.0
_END_S = 2.0
_log = logging.getLogger("agentenv.sandboxd")


def working_mounter(pid: int, uid: int, disk_bytes: int) -> Optional[Mounter]:
    """The helper, if snapshots can be mounted here: it has tried it on a slot that is thrown away."""
    # The helper is a fork: what is imported before it is started need not be imported by each. Few hosts get here.
    from . import mounts  # noqa: F401, PLC0415

    try:
        mounter = Mounter()
    except OSError:
        return None
    return mounter if mounter.trial(pid, uid, disk_bytes) else None


class Mounter:
    """Asks the helper; answers are handed to callbacks by the loop. One that is gone answers with an error at once."""

    def __init__(self) -> None:
        self._stream, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        try:
            self._pid = os.fork()
        except OSError:
            self._stream.close()
            raise
        finally:
            if os.getpid() == parent:
                theirs.close()
        if self._pid == 0:
            _be_the_helper(theirs, parent)
        self._loop: Optional[Loop] = None
        self._on_death: Callable[[], None] = _nothing
        self._count = 0
        self._waiting: Dict[int, Answer] = {}
        self.error = ""
        """Why there is no helper any more."""

    def trial(self, pid: int, uid: int, disk_bytes: int) -> bool:
        """Whether snapshots can be mounted here, tried on a slot that is thrown away. Waits for the answer."""
        self._stream.settimeout(_TRIAL_S)
        try:
            values = {"do": "trial", "pid": pid, "uid": uid, "disk_bytes": disk_bytes}
            self._stream.send(_encoded(0, values))
            answer = self._stream.recv(_MESSAGE)
        except OSError as error:
            self._gone("it gave no answer: %s" % error)
            return False
        error_text = json.loads(answer).get("error", "") if answer else "it ended at once"
        if error_text:
            self._gone(error_text)
        return not error_text

    def serve(self, loop: Loop, on_death: Callable[[], None]) -> None:
        """Begin to answer by the loop; `on_death` is called when the helper is gone unasked, before what it was asked
        is answered.
        """
        self._loop, self._on_death = loop, on_death
        self._stream.setblocking(False)
        loop.watch(self._stream.fileno(), self._ready)

    def ask(self, on_answer: Answer, descriptor: int = -1, **values: Any) -> None:
        """Have `values["do"]` of `Mounts` done; the answer has its `value`, or an `error`."""
        if self.error:
            on_answer({"error": self.error})
            return
        self._count += 1
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
        try:
            self._stream.sendmsg([_encoded(self._count, values)], rights if descriptor >= 0 else [])
        except OSError as error:
            self._gone(str(error))
            on_answer({"error": self.error})
            return
        self._waiting[self._count] = on_answer

    def close(self) -> None:
        """End the helper, and with it all that it has mounted for itself."""
        if not self.error:
            self._on_death = _nothing
            self._gone("it was closed")

    def _ready(self, _: int) -> None:
        try:
            message = self._stream.recv(_MESSAGE)
        except OSError:
            message = b""
        if not message:
            _log.warning("the helper for mounts is gone; snapshots are lost")
            self._gone("the helper for mounts is gone")
            return
        answer = json.loads(message)
        self._waiting.pop(answer["id"])(answer)

    def _gone(self, error: str) -> None:
        self.error = error
        if self._loop is not None:
            self._loop.unwatch(self._stream.fileno())
        self._stream.close()
        self._end()
        self._on_death()
        waiting, self._waiting = self._waiting, {}
        for on_answer in waiting.values():
            on_answer({"error": error})

    def _end(self) -> None:
        """It ends with its stream."""
        collect(self._pid, _END_S)


def _nothing() -> None:
    """Nobody is to be told."""


def _encoded(request_id: int, values: Dict[str, Any]) -> bytes:
    return json.dumps(dict(values, id=request_id)).encode("ascii")


def _be_the_helper(stream: socket.socket, parent: int) -> None:
    try:
        from .mounts import main  # noqa: PLC0415 - few hosts ever need it

        main(stream, parent)
    except Exception as error:  # noqa: BLE001 - the child of a fork has nobody to raise to
        _log.info("the helper for mounts ends: %r", error)
    finally:
        os._exit(0)
