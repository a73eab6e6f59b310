"""Running one command in a slot: spawn, read with caps, wait, and leave nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time

from .frames import MAYBE_OOM
from .lean import SIGKILL, write_all
from .refusal import RefusedError, from_os_error
from .slot_capture import CHUNK, LAST_READS, MAX_OUTPUT, Capture, enlarge_pipe, packed
from .slot_program import exit_code, find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple, Union

    from .slot_files import Workspace
    from .slot_init import Link
    from .slot_processes import Descendants, OneUser, PidNamespace
    from .slot_spawn import Spawner
    from .slot_watch import Watch

DRAIN_S = 0.1
"""How long output is still awaited after the main process exited, when something keeps a pipe open."""
MAX_ARGUMENT = 100_000
"""Longer commands become a script on a memory file: the kernel takes 128 KiB for one argument."""
_F_ADD_SEALS, _ALL_SEALS = 1033, 0xF
_ALLOW_SEALING = 2
_MAX_WAIT_S = 3600.0
"""A poll takes no more than 24 days; a longer wait is many."""
_CHILD_OOM_SCORE = 900
_CHILD_OOM_SCORE_TEXT = b"%d" % _CHILD_OOM_SCORE
_POLLIN = select.POLLIN


class OomScore:
    """Makes commands the first to go when memory runs out, and their init the last."""

    def __init__(self) -> None:
        # Opened now: an init that cannot be inspected cannot open it later either.
        self._file = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        self._own = os.pread(self._file, 16, 0).strip()
        self._is_lower = int(self._own) < _CHILD_OOM_SCORE

    def raise_for_children(self) -> None:
        """What is spawned from now on goes first."""
        if self._is_lower:
            os.pwrite(self._file, _CHILD_OOM_SCORE_TEXT, 0)

    def restore(self) -> None:
        """Back to the score this process was given."""
        if self._is_lower:
            os.pwrite(self._file, self._own, 0)


class Run:
    """What is known about the command that runs."""

    __slots__ = (
        "deadline",
        "ends",
        "err",
        "killed",
        "none_left",
        "out",
        "pid",
        "program",
        "started",
        "status",
        "streams",
    )

    def __init__(self, header: Dict[str, Any]) -> None:
        cap = int(header["max"])
        if not 0 <= cap <= MAX_OUTPUT:
            raise RefusedError("bad_request", "max_output_bytes is 0 to %d" % MAX_OUTPUT)
        self.started = time.monotonic()
        self.deadline = self.started + float(header["timeout"])
        self.out = Capture(cap)
        self.err = Capture(cap)
        self.streams: Dict[int, Capture] = {}
        self.ends: Tuple[int, ...] = ()
        """The writing ends. Held until the main process has ended: its death wakes us once, not once for each pipe."""
        self.program: Optional[bytes] = None
        """Its name, where it goes without a shell."""
        self.pid = 0
        self.status: Optional[int] = None
        self.none_left = False
        self.killed = 0


class Executor:
    """Runs commands, one at a time. `processes` ends whatever a command leaves behind."""

    def __init__(
        self,
        link: Link,
        workspace: Workspace,
        processes: Union[PidNamespace, OneUser, Descendants],
        *,
        shell: str,
        env: Dict[str, str],
        watch: Watch,
        spawner: Spawner,
    ) -> None:
        self._link = link
        self._workspace = workspace
        self._processes = processes
        self._shell = shell
        self._name = shell.rpartition("/")[2]
        self._env = env
        self._watch = watch
        self._poll = watch.poll
        self._spawner = spawner
        self._null = os.open("/dev/null", os.O_RDWR)

    def execute(
        self, request_id: int, header: Dict[str, Any], body: bytes
    ) -> Tuple[bytes, bytes, int]:
        """Header, body and flags of the answer. Raises `RefusedError` when the command cannot be started."""
        run = Run(header)
        split = len(body) - int(header.get("stdin", 0))
        outcome = "exited"
        failure = self._start(run, header, body[:split], body[split:])
        if failure is None:
            outcome = self._follow(run, request_id)
            self._clean(run)
            failure = self._spawner.failure(run.status) if run.status else None
        if failure is not None:
            _note_failure(run, failure)
        return _answer(run, outcome)

    # --- starting -------------------------------------------------------------------------------------------------

    def _start(
        self, run: Run, header: Dict[str, Any], command: bytes, stdin: bytes
    ) -> Optional[OSError]:
        """Begin the command, or tell why the system did not let it begin."""
        if "program" in header:
            run.program = command.partition(b"\0")[0]
        elif b"\0" in command:
            raise RefusedError(
                "bad_request", "the command holds a NUL byte, which no shell accepts"
            )
        cwd = header.get("cwd", ".")
        folder = -1 if cwd == "." else self._workspace.open_folder(cwd)
        try:
            if folder >= 0:
                os.fchdir(folder)
            self._spawn(run, command, stdin, header.get("env"))
        except OSError as error:
            return error
        except ValueError as error:
            raise RefusedError("bad_request", "environment: %s" % error) from error
        finally:
            if folder >= 0:
                os.close(folder)
                os.fchdir(self._workspace.fd)
        return None

    def _spawn(
        self, run: Run, command: bytes, stdin: bytes, extra_env: Optional[Dict[str, str]]
    ) -> None:
        env = dict(self._env, **extra_env) if extra_env else self._env
        opened: List[int] = []
        try:
            source = self._null
            if stdin:
                source = _memory_file(stdin)
                opened.append(source)
            out, out_end = os.pipe()
            opened += (out, out_end)
            err, err_end = os.pipe()
            opened += (err, err_end)
            # A command can open the reading end of its own output and take from us what `poll` has promised.
            os.set_blocking(out, False)
            os.set_blocking(err, False)
            actions = [
                (os.POSIX_SPAWN_DUP2, source, 0),
                (os.POSIX_SPAWN_DUP2, out_end, 1),
                (os.POSIX_SPAWN_DUP2, err_end, 2),
            ]
            path = self._shell
            arguments: List[Union[str, bytes]] = [self._name, "-c", command]
            if run.program is not None:
                path = find(run.program, env.get("PATH"))
                arguments[:] = command.split(b"\0")
            elif len(command) > MAX_ARGUMENT:
                script = _memory_file(command)
                opened.append(script)
                actions.append((os.POSIX_SPAWN_DUP2, script, 3))
                arguments[1:] = ["/dev/fd/3"]
            run.pid = self._spawner.spawn(path, arguments, env, actions)
            for descriptor in (out, err, out_end, err_end):
                opened.remove(descriptor)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        run.streams = {out: run.out, err: run.err}
        run.ends = (out_end, err_end)
        self._poll.register(out, _POLLIN)
        self._poll.register(err, _POLLIN)

    # --- following ------------------------------------------------------------------------------------------------

    def _follow(self, run: Run, request_id: int) -> str:
        """Read and wait until the command has ended, or must end. Returns how, as the driver's `ExecStatus` says it.

        Where no process is left there is nothing to wait for: `_clean` reads what the pipes still hold.
        """
        deadline, outcome = run.deadline, ""
        if self._link.withdrawn(request_id):
            return "cancelled"
        while (run.streams or run.status is None) and not run.none_left:
            left = deadline - time.monotonic()
            if left <= 0:
                return outcome or "timed_out"
            for fd, events in self._poll.poll(min(left, _MAX_WAIT_S) * 1000 + 1):
                if fd in run.streams:
                    self._read(run, fd, events)
                elif fd == self._watch.child_signals:
                    self._watch.read_child_signal()
                    self._reap(run)
                elif fd != self._watch.link_fd:
                    self._watch.handle(fd, events)
                elif self._link.cancelled(request_id):
                    return "cancelled"
            if run.status is not None and not outcome:
                outcome = "exited"
                deadline = min(deadline, time.monotonic() + DRAIN_S)
        return "exited"

    def _read(self, run: Run, fd: int, events: int) -> bool:
        """Take in what has come; False when there was nothing."""
        # A bare hang-up has nothing to read.
        try:
            data = os.read(fd, CHUNK) if events & _POLLIN else b""
        except BlockingIOError:
            return False
        if not data:
            self._close(run, fd)
            return True
        capture = run.streams[fd]
        if len(data) == CHUNK and capture.total == 0:
            enlarge_pipe(fd)
        capture.add(data)
        return True

    def _close(self, run: Run, fd: int) -> None:
        del run.streams[fd]
        self._poll.unregister(fd)
        os.close(fd)

    def _reap(self, run: Run) -> None:
        ended, run.none_left = self._processes.reap()
        self._note(run, ended)

    def _note(self, run: Run, ended: List[Tuple[int, int]]) -> None:
        for pid, status in ended:
            if pid == run.pid:
                run.status = status
                for descriptor in run.ends:
                    os.close(descriptor)

    # --- cleaning -------------------------------------------------------------------------------------------------

    def _clean(self, run: Run) -> None:
        if not run.none_left:
            ended = self._processes.kill_leftovers()
            self._note(run, ended)
            run.killed = sum(pid != run.pid and was_killed(status) for pid, status in ended)
        # What the dead had written is still in the pipes; nobody holds their other ends now.
        for fd in list(run.streams):
            for _ in range(LAST_READS):
                if fd not in run.streams or not self._read(run, fd, _POLLIN):
                    break
            if fd in run.streams:
                self._close(run, fd)


def _answer(run: Run, outcome: str) -> Tuple[bytes, bytes, int]:
    code, flags = 124, 0
    if outcome == "cancelled":
        code = 128 + SIGKILL
    elif outcome == "exited" and run.status is not None:
        if os.WIFSIGNALED(run.status):
            outcome, code = "signaled", 128 + os.WTERMSIG(run.status)
        else:
            code = os.WEXITSTATUS(run.status)
        if code == 128 + SIGKILL:
            flags = MAYBE_OOM
    sizes, body = packed(run.out, run.err)
    header = b'{"status":"%s","code":%d,"seconds":%.6f,"killed":%d,"sizes":%s}' % (
        outcome.encode(),
        code,
        time.monotonic() - run.started,
        run.killed,
        sizes,
    )
    return header, body, flags


def was_killed(status: int) -> bool:
    """Whether a wait status says SIGKILL."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == SIGKILL


def _note_failure(run: Run, failure: OSError) -> None:
    """Of a program that is not there, or is none, a shell would say as much. Raises `RefusedError` for all else."""
    code = 0 if run.program is None else exit_code(failure)
    if not code:
        raise _start_failure(failure) from failure
    run.err.add(b"%s: %s\n" % (run.program, os.strerror(failure.errno or 0).encode()))
    run.status = code << 8


def _start_failure(error: OSError) -> RefusedError:
    if error.errno == errno.E2BIG:
        message = "the environment and arguments are too large for the kernel to pass on"
        return RefusedError("bad_request", message)
    failure = from_os_error(error, "cannot start the command")
    return RefusedError("cannot_start", failure.message)


def _memory_file(content: bytes) -> int:
    """A descriptor that reads `content`. A file rather than a pipe: nobody has to feed it while the command runs.

    Sealed: what a script starts inherits the descriptor, and must not rewrite the lines that are still to come.
    """
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | _ALLOW_SEALING)
    try:
        write_all(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _ALL_SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
