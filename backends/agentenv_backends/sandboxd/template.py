"""The host's end of the process that slots are copies of (`slot_template.py`)."""

from __future__ import annotations

import json
import os
import socket
from typing import Callable, Optional, Sequence

from .process import SlotProcess, collect
from .template_order import DESCRIPTORS, NUMBER

_ANSWER_S = 10.0
_END_S = 2.0


class TemplateError(Exception):
    """The template did not begin a slot. The message says why."""


class Template:
    """Has slots begun by the template, which `begin` starts: when it is first needed, and when it is gone."""

    def __init__(self, begin: Callable[[], SlotProcess]) -> None:
        self._begin = begin
        self._process: Optional[SlotProcess] = None

    @property
    def pid(self) -> int:
        """Its process id; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def fork(self, stream: int, errors: int, groups: Sequence[str]) -> int:
        """Begin a slot in these control groups. Returns the process id of its init, a child of this process.

        Raises `OSError` when the system does not let it begin, `TemplateError` when the template gives no answer.
        """
        order = json.dumps(groups).encode("ascii")
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, DESCRIPTORS.pack(stream, errors))
        try:
            template = self._process or self._started()
            template.stream.sendmsg([order], [rights])
        except OSError:
            self.close()  # where commands are kept from nothing, one may have ended it
            template = self._started()
            template.stream.sendmsg([order], [rights])
        return self._answer(template)

    def _started(self) -> SlotProcess:
        self._process = self._begin()
        self._process.stream.settimeout(_ANSWER_S)
        return self._process

    def _answer(self, template: SlotProcess) -> int:
        try:
            answer = template.stream.recv(NUMBER.size)
        except OSError as error:
            answer, reason = b"", str(error)
        else:
            reason = "it has ended"
        if not answer:
            # Not asked again: a slot that it may have begun all the same ends with its stream, but not at once.
            reason = template.error_text() or reason
            self.close()
            raise TemplateError("the process that begins slots gave no answer: %s" % reason)
        (pid,) = NUMBER.unpack(answer)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return int(pid)

    def close(self) -> None:
        """End the template, if there is one."""
        template, self._process = self._process, None
        if template is not None:
            template.close()
            template.kill()
            collect(template.pid, _END_S)
