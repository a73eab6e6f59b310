"""Starting the processes of slots: identity, limits, descriptors, confinement, and what of it is really in force."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import socket
import tempfile
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Tuple

from . import bundle, bwrap, cgroups, leftovers, seccomp
from .settings import HostSettings
from .slot_processes import parent_of, signal_quietly
from .trees import remove_tree

_MB = 1 << 20
_INIT_MEMORY = 32 * _MB
_RESERVED_PROCESSES = 2  # bubblewrap's own and the slot's init
_USERNS_COUNTS = (5, 14)
"""From this kernel on, RLIMIT_NPROC set inside a user namespace counts that namespace's processes."""


class HostError(Exception):
    """The host cannot work as asked. The message says what to do."""


class SlotParts(NamedTuple):
    """What a slot is given, and gives back."""

    uid: Optional[int]
    group: Optional[cgroups.Group]
    folder: str
    """Its folder on this machine; empty under bubblewrap, where all it writes is memory of its own."""


class SlotProcess:
    """A started slot: its outermost process and the host's ends of what leads to it."""

    def __init__(self, pid: int, stream: socket.socket, errors: int, parts: SlotParts) -> None:
        self.pid = pid
        """The outermost process; 0 once it has been reaped."""
        self.init_pid = 0
        """The slot's first process as seen from here; 0 until it has spoken."""
        self.stream = stream
        self.errors = errors
        self.parts = parts
        self.setup = b""
        """What its init is told first."""

    @property
    def confined(self) -> bool:
        """Whether a pid namespace holds it."""
        return not self.parts.folder

    @property
    def workspace(self) -> str:
        """The workspace as the slot's commands see it."""
        return (
            os.path.join(self.parts.folder, "workspace") if self.parts.folder else bwrap.WORKSPACE
        )

    def error_text(self) -> str:
        """What the slot's own processes complained about; commands cannot write there."""
        try:
            return os.read(self.errors, 1 << 16).decode("utf-8", "replace").strip()[-1000:]
        except BlockingIOError:
            return ""

    def close(self) -> None:
        """Let go of the host's ends."""
        self.stream.close()
        os.close(self.errors)

    def end(self) -> None:
        """Have the slot end; its outermost process follows when everything else is dead.

        The death of its init is the death of all in a pid namespace. Elsewhere, and before it has spoken, the init is
        told by the end of its stream.
        """
        if self.confined and self.init_pid:
            signal_quietly(self.init_pid, signal.SIGKILL)
        else:
            self.hang_up()

    def hang_up(self) -> None:
        """End the stream."""
        try:
            self.stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            self.kill()

    def left_to_us(self) -> bool:
        """Whether the init has outlived the outermost process, and so become a child of this one."""
        if not self.confined or self.pid or not self.init_pid:
            return False
        return parent_of(str(self.init_pid)) == os.getpid()

    def kill(self) -> None:
        """End a slot that does not end by itself. What it leaves falls to this process, a subreaper."""
        for pid in (self.init_pid, self.pid):
            if pid:
                signal_quietly(pid, signal.SIGKILL)


class Launcher:
    """Starts slots as the settings say. Raises `HostError` when that is impossible here."""

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.confined = settings.isolation == "bubblewrap"
        self.drops_uid = self.confined and os.geteuid() == 0
        self._free_uids: List[int] = []
        self._next_uid = settings.uid_base
        self._owner = leftovers.owner_of_this_process()
        self._counter = 0
        self._bubblewrap, self.version = "", ""
        self._data_files: Dict[str, int] = {}
        try:
            if self.confined:
                self._bubblewrap, self.version = bwrap.find_bubblewrap()
                self._filter = bundle.memory_file("seccomp", seccomp.filter_program())
                self._data_files = {
                    path: bundle.memory_file("etc", text.encode())
                    for path, text in bwrap.ETC_FILES.items()
                }
            self._interpreter, self._bundle = self._find_interpreter()
        except (
            bwrap.BubblewrapError,
            seccomp.UnsupportedMachineError,
            bundle.InterpreterError,
        ) as error:
            raise HostError(str(error)) from error
        self._limits = cgroups.Limits(
            processes=settings.max_processes + _RESERVED_PROCESSES,
            memory_bytes=(settings.memory_mb + settings.disk_mb + 2 * settings.tmp_mb) * _MB
            + _INIT_MEMORY,
            cpus=settings.cpus,
        )
        self.cgroups = cgroups.find(self._limits, self._name(""))
        controllers = self.cgroups.controllers if self.cgroups else ()
        self.limits_processes_inside = "pids" not in controllers and self._processes_by_rlimit()
        self._limit_memory_by_rlimit = "memory" not in controllers
        self.folders = ""
        if not self.confined:
            self.folders = os.path.join(tempfile.gettempdir(), self._name("slots"))
            os.mkdir(self.folders, 0o700)

    # --- starting -------------------------------------------------------------------------------------------------

    def start(self, *, report: bool = False) -> SlotProcess:
        """Start a slot; it says READY on its stream when it takes requests. Raises `OSError` or `HostError`."""
        parts = self._take_parts()
        try:
            ours, theirs, errors, errors_end = _channels()
        except OSError:
            self._give_back(parts)
            raise
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            os.close(errors)
            self._give_back(parts)
            raise
        finally:
            if os.getpid() == self._owner.pid:
                theirs.close()
                os.close(errors_end)
        if pid == 0:
            self._become_slot(theirs.fileno(), errors_end, parts)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        process = SlotProcess(pid, ours, errors, parts)
        process.setup = self._setup_header(process, report=report)
        return process

    def finish(self, process: SlotProcess) -> None:
        """Take back what a slot had; all its processes have ended."""
        process.close()
        self._give_back(process.parts)

    def close(self) -> None:
        """Take back what the host had."""
        if self.folders:
            shutil.rmtree(self.folders, ignore_errors=True)

    def _name(self, what: str) -> str:
        return leftovers.name_for(self.settings.run_id, self._owner, what)

    def _take_uid(self) -> Optional[int]:
        if not self.drops_uid:
            return None
        if self._free_uids:
            return self._free_uids.pop()
        settings = self.settings
        if self._next_uid >= settings.uid_base + settings.uid_count:
            raise HostError(
                "all %d uids from %d on are taken (uid_count)"
                % (settings.uid_count, settings.uid_base)
            )
        self._next_uid += 1
        return self._next_uid - 1

    def _take_parts(self) -> SlotParts:
        self._counter += 1
        uid = self._take_uid()
        group = None
        try:
            if self.cgroups is not None:
                group = self.cgroups.create(self._name("slot%d" % self._counter), self._limits)
            folder = ""
            if not self.confined:
                folder = os.path.join(self.folders, "%d" % self._counter)
                for path in (
                    folder,
                    os.path.join(folder, "workspace"),
                    os.path.join(folder, "tmp"),
                ):
                    os.mkdir(path, 0o700)
        except OSError:
            self._give_back(SlotParts(uid, group, ""))
            raise
        return SlotParts(uid, group, folder)

    def _give_back(self, parts: SlotParts) -> None:
        if parts.uid is not None:
            self._free_uids.append(parts.uid)
        if parts.group is not None:
            parts.group.remove()
        if parts.folder:
            remove_tree(parts.folder)

    def _setup_header(self, process: SlotProcess, *, report: bool) -> bytes:
        settings, folder = self.settings, process.parts.folder
        env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": process.workspace,
            "TMPDIR": os.path.join(folder, "tmp") if folder else "/tmp",  # noqa: S108 - the slot's own
            "SHELL": "/bin/bash",
            "USER": "agent",
            "LOGNAME": "agent",
            # Only the character set: the other categories of C.UTF-8 are those of C, and loading them costs each
            # shell a tenth of its start.
            "LC_CTYPE": "C.UTF-8",
            "TERM": "dumb",
        }
        if not self.confined:
            env["PATH"] = os.environ.get("PATH", env["PATH"])
        limit = (
            settings.max_processes + _RESERVED_PROCESSES if self.limits_processes_inside else None
        )
        values: Dict[str, Any] = {
            "isolation": settings.isolation,
            "workspace": process.workspace,
            "folder": folder,
            "env": env,
            "max_processes": limit,
            "report": report,
        }
        return json.dumps(values).encode("ascii")

    # --- in the child -----------------------------------------------------------------------------------------------

    def _become_slot(self, stream: int, errors: int, parts: SlotParts) -> NoReturn:
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(errors, 1)
            os.dup2(errors, 2)
            os.set_blocking(2, True)
            program = self._program(stream)
            if parts.group is not None:
                parts.group.join()
            # Last: until the new program begins, this process holds the descriptors of all slots.
            self._set_limits()
            if parts.uid is not None:
                os.setgroups([])
                os.setresgid(parts.uid, parts.uid, parts.uid)
                os.setresuid(parts.uid, parts.uid, parts.uid)
            os.chdir("/")
            os.umask(0o022)
            os.execve(program[0], program, {})  # noqa: S606
        except BaseException as error:  # noqa: BLE001 - the child of a fork has nobody to raise to
            os.write(2, ("cannot start a slot: %r" % error).encode("utf-8", "replace"))
        finally:
            os._exit(127)

    def _program(self, stream: int) -> List[str]:
        os.set_inheritable(stream, True)
        compiled = _reopened(self._bundle)
        init = bundle.boot_command(self._interpreter, compiled, stream)
        if not self.confined:
            return init
        data_files = {path: _reopened(descriptor) for path, descriptor in self._data_files.items()}
        return (
            bwrap.command_line(self._bubblewrap, self.settings, data_files, _reopened(self._filter))
            + init
        )

    def _set_limits(self) -> None:
        settings = self.settings
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit(resource.RLIMIT_NOFILE, settings.open_files)
        if self._limit_memory_by_rlimit:
            _limit(resource.RLIMIT_DATA, settings.memory_mb * _MB)

    def _processes_by_rlimit(self) -> bool:
        release = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())
        return self.confined and (self.drops_uid or release >= _USERNS_COUNTS)

    def _find_interpreter(self) -> Tuple[str, int]:
        reasons = []
        for path in bundle.find_interpreter(self.settings.python):
            if self.confined and not self._visible(path):
                reasons.append(
                    "%s is not below /usr nor in readonly_paths, so slots cannot see it: install Python below /usr "
                    "(`apt-get install python3`)" % path
                )
                continue
            try:
                return path, bundle.compile_bundle(path)
            except bundle.InterpreterError as error:
                reasons.append(str(error))
        raise HostError("; ".join(reasons))

    def _visible(self, path: str) -> bool:
        real = os.path.realpath(path)
        roots = ("/usr", *self.settings.readonly_paths)
        return any(real.startswith(root.rstrip("/") + "/") for root in roots)


def _channels() -> Tuple[socket.socket, socket.socket, int, int]:
    """Both ends of a slot's stream, and both of the pipe for its complaints. Raises `OSError`, leaving nothing."""
    ours, theirs = socket.socketpair()
    try:
        return (ours, theirs, *os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        ours.close()
        theirs.close()
        raise


def _limit(what: int, wanted: int) -> None:
    """Limit what is to come to `wanted`, or to less where this process may not have as much itself."""
    _, hard = resource.getrlimit(what)
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(what, (value, value))


def _reopened(descriptor: int) -> int:
    """The same file with a reading position of its own, to be inherited."""
    fresh = os.open("/proc/self/fd/%d" % descriptor, os.O_RDONLY)
    os.set_inheritable(fresh, True)
    return fresh
