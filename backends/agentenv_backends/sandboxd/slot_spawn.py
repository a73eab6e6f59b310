"""Starting programs in a slot: as the slot's user, with default signals, the first to go when memory runs out."""

from __future__ import annotations

import errno
import fcntl
import os
import select

from .lean import (
    PR_SET_CHILD_SUBREAPER,
    SIGCHLD,
    SIGKILL,
    SIGPIPE,
    SIGSTOP,
    SIGXFSZ,
    default_signals,
    prctl,
    unblock_signals,
)
from .slot_processes import is_childless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, NoReturn, Sequence, Tuple, Union

    from .slot_begin import Beginner
    from .slot_exec import OomScore
    from .slot_user import SlotUser

    FileActions = Sequence[Tuple[Any, ...]]
    Arguments = List[Union[str, bytes]]

_ALL_SIGNALS = tuple(number for number in range(1, 32) if number not in (SIGKILL, SIGSTOP))
"""What the host or its driver ignores is no matter of a command's: a shell could not even trap it."""
_BEGIN_S = 5.0
"""How long a program is awaited to begin; one that is held up by then is left to its own deadline."""
_NO_TEXT = b"\xff"
"""How the number of a failure ends, as 8 bytes of a negative number, and how no UTF-8 does."""
_NOT_BEGUN = 127
"""Exit code of what did not become a program; of programs, too."""
_NOWHERE = "/dev/null/nowhere"
"""What can become nothing, if it gets so far as to try, fails with ENOTDIR."""
_MOST_PROGRAMS = 8
"""Entry programs that are kept: what commands become is mostly the shell."""
_HELD = (SIGPIPE, SIGCHLD, SIGXFSZ)
"""What an init must not end at. Python would ignore the first and the last, and so would what it starts."""


class Spawner:
    """Starts programs, each in a session of its own. `user` is who they are, where that is not who the init is."""

    def __init__(self, oom_score: OomScore, user: Union[SlotUser, None]) -> None:
        self._oom_score = oom_score
        self._user = user
        self._failures: Union[_Failures, None] = None
        self._beginner: Union[Beginner, None] = None
        self._entry: Union[_Entry, None] = None
        self._to_default = _ALL_SIGNALS
        if user is not None:
            default_signals(blocked=_HELD)
            self._to_default = ()
            if not user.is_root:
                self._failures = _Failures()
                self._beginner = _tried_beginner(user.uid, self._failures)
                self._entry = _Entry.made(user.uid, self._failures)

    def spawn(
        self,
        path: str,
        arguments: Arguments,
        env: Dict[str, str],
        actions: FileActions,
        *,
        subreaper: bool = False,
    ) -> int:
        """Start a program and return its process id. `actions` are those of `os.posix_spawn`.

        What descends from a `subreaper` stays below it while it lives. Ask `failure` for what ends at once.
        Raises `OSError` when the system does not let it begin, `ValueError` for what it cannot be given.
        """
        self._oom_score.raise_for_children()
        try:
            pid = 0 if subreaper else self._begin(path, arguments, env, actions)
            if pid:
                return pid
            if subreaper or (self._user is not None and self._entry is None):
                fork = _Fork(self._user, subreaper=subreaper)
                return fork.spawn(path, arguments, env, actions)
            if self._entry is not None:
                path, actions = self._entry.to(path), [*actions, self._entry.failures]
            return os.posix_spawn(
                path,
                arguments,
                env,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=self._to_default,
            )
        finally:
            self._oom_score.restore()

    def failure(self, status: int) -> Union[OSError, None]:
        """Why a program with that wait status, the last that was started, did not begin, if it did not."""
        if self._failures is None:
            return None
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != _NOT_BEGUN:
            return None
        return self._failures.last()

    def _begin(
        self, path: str, arguments: Arguments, env: Dict[str, str], actions: FileActions
    ) -> int:
        """0: it has to be started in another way."""
        # Every process of the user is a child of this one or becomes one when its parent dies.
        if self._beginner is None or not is_childless():
            return 0
        return self._beginner.begin(path, arguments, env, actions)


class _Failures:
    """A pipe on which a program that does not begin says why."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)

    def last(self) -> Union[OSError, None]:
        """What the last one said before it ended, if it said something."""
        try:
            number = -int.from_bytes(os.read(self._reading, 8), "little", signed=True)
        except BlockingIOError:
            return None
        return OSError(number, os.strerror(number))

    def of_trial(self, pid: int) -> bool:
        """Whether the process that was to become nothing has got so far as to try. Waits for its end."""
        _, status = os.waitpid(pid, 0)
        failure = self.last()
        return os.WIFEXITED(status) and failure is not None and failure.errno == errno.ENOTDIR


def _tried_beginner(uid: int, failures: _Failures) -> Union[Beginner, None]:
    """None where it does not work."""
    from .slot_begin import Beginner  # noqa: PLC0415 - few slots need it

    try:
        beginner = Beginner(uid, failures.writing)
        pid = beginner.begin(_NOWHERE, ["-"], {}, [])
    except OSError:
        return None
    return beginner if pid and failures.of_trial(pid) else None


class _Entry:
    """Does what `_Fork` does for commands of a user, in half the time, by way of an entry program."""

    def __init__(self, uid: int, failures: _Failures) -> None:
        from .slot_entry import FAILURES  # noqa: PLC0415 - few slots need it

        self._uid = uid
        self._programs: Dict[str, int] = {}
        """Descriptors of the programs, by what they become; the latest used last."""
        self.failures = (os.POSIX_SPAWN_DUP2, failures.writing, FAILURES)
        """Has a program that does not begin say why."""

    @classmethod
    def made(cls, uid: int, failures: _Failures) -> Union[_Entry, None]:
        """None where the system does not let such a program begin, or become another user."""
        try:
            entry = cls(uid, failures)
            pid = os.posix_spawn(entry.to(_NOWHERE), ["-"], {}, file_actions=[entry.failures])
        except OSError:
            return None
        return entry if failures.of_trial(pid) else None

    def to(self, path: str) -> str:
        """What to start in order to become the program at `path`. Raises `OSError`."""
        program = self._programs.pop(path, -1)
        if program < 0:
            from .slot_entry import open_entry_program  # noqa: PLC0415 - few slots need it

            program = open_entry_program(self._uid, path)
            if len(self._programs) == _MOST_PROGRAMS:
                os.close(self._programs.pop(next(iter(self._programs))))
        self._programs[path] = program
        return "/proc/self/fd/%d" % program


class _Fork:
    """What `posix_spawn` does, by a child that takes on another identity between fork and exec."""

    def __init__(self, user: Union[SlotUser, None], *, subreaper: bool) -> None:
        self._user = user
        self._subreaper = subreaper

    def spawn(
        self, path: str, arguments: Arguments, env: Dict[str, str], actions: FileActions
    ) -> int:
        reading, writing = _pipe_out_of_the_way(actions)
        try:
            try:
                pid = os.fork()
                if pid == 0:
                    self._begin(path, arguments, env, actions, writing)
            finally:
                os.close(writing)
            failure = _first_words(reading)
        finally:
            os.close(reading)
        if failure:
            os.kill(pid, SIGKILL)  # neighbours of the same user may have stopped it
            os.waitpid(pid, 0)
            raise _as_error(failure)
        return pid

    def _begin(
        self,
        path: str,
        arguments: Arguments,
        env: Dict[str, str],
        actions: FileActions,
        failures: int,
    ) -> NoReturn:
        try:
            # As little as can be: every line costs the child pages of its own.
            os.setsid()
            if self._user is not None:
                unblock_signals()
                self._user.become_command()
            else:
                default_signals()
            if self._subreaper:
                prctl(PR_SET_CHILD_SUBREAPER, 1)
            _act(actions)
            os.execve(path, arguments, env)  # noqa: S606 - the slot's shell
        except OSError as error:
            os.write(failures, (-(error.errno or errno.EIO)).to_bytes(8, "little", signed=True))
        except BaseException as error:  # noqa: BLE001 - the child of a fork has nobody to raise to
            os.write(failures, str(error).encode("utf-8", "backslashreplace"))
        finally:
            os._exit(_NOT_BEGUN)


def _pipe_out_of_the_way(actions: FileActions) -> Tuple[int, int]:
    """A pipe whose writing end has a number that no action gives away."""
    reading, writing = os.pipe()
    highest = max((action[-1] if _is_dup(action) else action[1] for action in actions), default=0)
    if writing > highest:
        return reading, writing
    try:
        return reading, fcntl.fcntl(writing, fcntl.F_DUPFD_CLOEXEC, highest + 1)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)


def _is_dup(action: Tuple[Any, ...]) -> bool:
    return bool(action[0] == os.POSIX_SPAWN_DUP2)


def _act(actions: FileActions) -> None:
    for kind, *values in actions:
        if kind == os.POSIX_SPAWN_DUP2:
            os.dup2(*values)
        elif kind == os.POSIX_SPAWN_CLOSE:
            os.close(*values)
        else:
            target, path, flags, mode = values
            opened = os.open(path, flags, mode)
            if opened == target:
                os.set_inheritable(target, True)
            else:
                os.dup2(opened, target)
                os.close(opened)


def _first_words(reading: int) -> bytes:
    """Why a program did not begin; nothing when it did: its end of the pipe closes then."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    return os.read(reading, 4096) if poll.poll(_BEGIN_S * 1000) else b""


def _as_error(failure: bytes) -> Exception:
    if failure.endswith(_NO_TEXT):
        number = -int.from_bytes(failure, "little", signed=True)
        return OSError(number, os.strerror(number))
    return ValueError(failure.decode("utf-8", "replace"))
