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
from functools import partial
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Tuple

from . import bundle, bwrap, cgroups, host_limits, leftovers, names, reset, seccomp
from .lean import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, prctl
from .mounter import Mounter
from .process import SlotParts, SlotProcess
from .reflinks import can_share
from .settings import HostSettings
from .template import Template, TemplateError
from .trees import remove_tree
from .users import Users, UsersError, disk_size

_MB = 1 << 20
_INIT_MEMORY = 32 * _MB
_RESERVED_PROCESSES = 2  # bubblewrap's own and the slot's init
_USERNS_COUNTS = (5, 14)
"""From this kernel on, RLIMIT_NPROC set inside a user namespace counts that namespace's processes."""


class HostError(Exception):
    """The host cannot work as asked. The message says what to do."""


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
        self._system_folders: List[str] = []
        self.users: Optional[Users] = None
        try:
            if settings.isolation == "user":
                self.users = Users(settings)
                seccomp.filter_program()  # raises here, once, where there is none for this machine
            if self.confined:
                self._bubblewrap, self.version = bwrap.find_bubblewrap()
                self._system_folders = bwrap.system_folders(settings)
                self._filter = bundle.memory_file("seccomp", seccomp.filter_program())
                self._data_files = {
                    path: bundle.memory_file("etc", text.encode())
                    for path, text in bwrap.ETC_FILES.items()
                }
            self._interpreter, self._bundle = self._find_interpreter()
        except (
            UsersError,
            bwrap.BubblewrapError,
            seccomp.UnsupportedMachineError,
            bundle.InterpreterError,
        ) as error:
            raise HostError(str(error)) from error
        self._limits = cgroups.Limits(
            processes=settings.max_processes + _RESERVED_PROCESSES,
            memory_bytes=(settings.memory_mb + settings.disk_mb) * _MB
            + (2 + len(settings.folders)) * settings.tmp_mb * _MB
            + _INIT_MEMORY,
            cpus=settings.cpus,
        )
        self.cgroups = cgroups.find(self._limits, self._name(""))
        controllers = self.cgroups.controllers if self.cgroups else ()
        self.limits_processes_inside = "pids" not in controllers and self._processes_by_rlimit()
        self._limit_memory_by_rlimit = "memory" not in controllers
        self.host_memory = host_limits.HostMemory.find() if self.users is not None else None
        self.template: Optional[Template] = None
        """What begins slots, where they are neither confined nor users."""
        self.mounter: Optional[Mounter] = None
        """The helper for mounts, where it has proved to work. Kept from then on: the first snapshot is not to wait."""
        self.folders = ""
        self.clones_in = ""
        """The folder of slots whose file system shares blocks between files; empty: there is none."""
        if self.users is not None:
            self.folders = os.path.commonpath([pair[0] for pair in settings.slot_folders])
            if not settings.run_as_root:
                names.start([workspace for workspace, _ in settings.slot_folders])
            self._give_up_privileges()
        elif not self.confined:
            self.folders = os.path.join(tempfile.gettempdir(), self._name("slots"))
            os.mkdir(self.folders, 0o700)
            self.clones_in = self.folders if can_share(self.folders) else ""
            begin = partial(self._run, module=bundle.TEMPLATE)
            self.template = Template(lambda: _started(SlotParts(None, None), begin))

    # --- starting -------------------------------------------------------------------------------------------------

    def start(self, *, report: bool = False) -> SlotProcess:
        """Start a slot; it says READY on its stream when it takes requests. Raises `OSError` or `HostError`."""
        parts = self._take_parts()
        try:
            process = _started(parts, self._run if self.template is None else self._copy)
        except (OSError, HostError):
            self._give_back(parts)
            raise
        process.stream.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        if process.memory is None and self.host_memory is not None:
            alone = len(self.settings.slot_folders) == 1
            process.memory = host_limits.MemoryWatch(self.host_memory, alone=alone)
        process.setup = self._setup_header(process, report=report)
        return process

    def start_reset(self, process: SlotProcess) -> int:
        """Have the end of a slot proved by a process, whose id this is: its status 0 is the proof. 0 where the end of
        its processes is all that is needed. Raises `OSError`.
        """
        home = process.parts.home
        if self.users is None or home is None or process.is_root:
            return 0
        return reset.start(home, self.users.places, self.users.ids)

    @property
    def single_use(self) -> bool:
        """Whether a slot is opened once here, and none after it."""
        return self.users is not None and self.users.single_use

    def finish(self, process: SlotProcess, *, reusable: bool = True) -> None:
        """Take back what a slot had; all its processes have ended. Its home is given again only if it is `reusable`."""
        process.close()
        self._give_back(process.parts)
        if process.parts.home is not None and self.users is not None and reusable:
            self.users.give_back(process.parts.home)

    def close(self) -> None:
        """Take back what the host had."""
        if self.mounter is not None:
            self.mounter.close()
        if self.template is not None:
            self.template.close()
        if self.folders and self.users is None:
            shutil.rmtree(self.folders, ignore_errors=True)

    def _give_up_privileges(self) -> None:
        """No set-user-id program of the image gives anybody anything; and where commands are root they shall not be
        able to signal this process, nor to look into it.
        """
        assert self.users is not None
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if self.settings.run_as_root:
            prctl(PR_SET_DUMPABLE, 0)
            for number in signal.valid_signals() - {signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            os.setresuid(self.users.ids[-1], 0, self.users.ids[-1])

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
        try:
            home = self.users.take() if self.users is not None else None
        except UsersError as error:
            raise HostError(str(error)) from error
        uid = self._take_uid()
        group = None
        try:
            if self.cgroups is not None:
                group = self.cgroups.create(self._name("slot%d" % self._counter), self._limits)
            folder = ""
            if self.folders and home is None:
                folder = os.path.join(self.folders, "%d" % self._counter)
                for path in (
                    folder,
                    os.path.join(folder, "workspace"),
                    os.path.join(folder, "tmp"),
                ):
                    os.mkdir(path, 0o700)
        except OSError:
            self._give_back(SlotParts(uid, group, home=home))
            raise
        return SlotParts(uid, group, folder, home)

    def _give_back(self, parts: SlotParts) -> None:
        if parts.group is not None:
            parts.group.remove()
        if parts.uid is not None:
            self._free_uids.append(parts.uid)
        if parts.folder:
            remove_tree(parts.folder)

    def _setup_header(self, process: SlotProcess, *, report: bool) -> bytes:
        settings, home = self.settings, process.parts.home
        env = {
            **_inherited(settings),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": process.workspace,
            "TMPDIR": process.tmp,
            "SHELL": "/bin/bash",
            "USER": "agent",
            "LOGNAME": "agent",
            # Only the character set: the other categories of C.UTF-8 are those of C, and loading them costs each
            # shell a tenth of its start.
            "LC_CTYPE": "C.UTF-8",
            "TERM": "dumb",
            **_proxy_variables(settings.proxy),
        }
        if not self.confined:
            env["PATH"] = os.environ.get("PATH", env["PATH"])
        env.update(settings.variables)
        # A user's limit counts its commands alone, a namespace's also what starts them.
        reserved = 0 if home is not None else _RESERVED_PROCESSES
        limit = settings.max_processes + reserved if self.limits_processes_inside else None
        values: Dict[str, Any] = {
            "isolation": settings.isolation,
            "workspace": process.workspace,
            "folder": process.parts.folder,
            "user": [home.uid, home.keeper] if home is not None else None,
            "env": env,
            "max_processes": limit,
            "lends": not process.is_root,
            "report": report,
        }
        return json.dumps(values).encode("ascii")

    def _run(self, stream: int, errors: int, parts: SlotParts, module: str = bundle.INIT) -> int:
        pid = os.fork()
        if pid == 0:
            self._become_slot(stream, errors, parts, module)
        return pid

    def _copy(self, stream: int, errors: int, parts: SlotParts) -> int:
        assert self.template is not None
        try:
            return self.template.fork(
                stream, errors, parts.group.join_files if parts.group is not None else ()
            )
        except TemplateError as error:
            raise HostError(str(error)) from error

    # --- in the child -----------------------------------------------------------------------------------------------

    def _become_slot(self, stream: int, errors: int, parts: SlotParts, module: str) -> NoReturn:
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(errors, 1)
            os.dup2(errors, 2)
            os.set_blocking(2, True)
            program = self._program(stream, module)
            if self.confined:
                # A group of its own until the init takes a session: see `SlotProcess.kill`.
                os.setpgid(0, 0)
            if parts.group is not None:
                parts.group.join()
            # Last: until the new program begins, this process holds the descriptors of all slots.
            self._set_limits()
            if parts.home is not None:
                os.setresuid(
                    0, 0, 0
                )  # the slot's init takes its identity itself: it would not outlive the exec
            if parts.uid is not None:
                os.setgroups([])
                os.setresgid(parts.uid, parts.uid, parts.uid)
                os.setresuid(parts.uid, parts.uid, parts.uid)
            os.chdir("/")
            os.umask(0o022)
            if parts.home is not None:
                sockets = not self.settings.refuse_sockets
                seccomp.install(seccomp.filter_program(init=os.getpid(), sockets=sockets))
            os.execve(program[0], program, {})  # noqa: S606
        except BaseException as error:  # noqa: BLE001 - the child of a fork has nobody to raise to
            os.write(2, ("cannot start a slot: %r" % error).encode("utf-8", "replace"))
        finally:
            os._exit(127)

    def _program(self, stream: int, module: str) -> List[str]:
        os.set_inheritable(stream, True)
        compiled = _reopened(self._bundle)
        init = bundle.boot_command(self._interpreter, module, compiled, stream)
        if not self.confined:
            return init
        data_files = {path: _reopened(descriptor) for path, descriptor in self._data_files.items()}
        confinement = bwrap.command_line(
            *(self._bubblewrap, self.settings, self._system_folders),
            *(data_files, _reopened(self._filter)),
        )
        return confinement + init

    def _set_limits(self) -> None:
        settings = self.settings
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit(resource.RLIMIT_NOFILE, settings.open_files)
        if self.users is not None and disk_size(settings.slot_folders[0][0]) is None:
            _limit(resource.RLIMIT_FSIZE, settings.disk_mb * _MB)
        if self._limit_memory_by_rlimit:
            _limit(resource.RLIMIT_DATA, settings.memory_mb * _MB)

    def _processes_by_rlimit(self) -> bool:
        if self.users is not None:
            return not self.settings.run_as_root
        release = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())
        return self.confined and (self.drops_uid or release >= _USERNS_COUNTS)

    def _find_interpreter(self) -> Tuple[Sequence[str], int]:
        reasons = []
        for path in bundle.find_interpreter(self.settings.python):
            if self.confined and not self._visible(path):
                reasons.append(
                    "%s is not below /usr nor in readonly_paths, so slots cannot see it: install Python below /usr "
                    "(`apt-get install python3`)" % path
                )
                continue
            try:
                command = (*self.settings.python_loader, path)
                return command, bundle.compile_bundle(command)
            except bundle.InterpreterError as error:
                reasons.append(str(error))
        raise HostError("; ".join(reasons))

    def _visible(self, path: str) -> bool:
        real = os.path.realpath(path)
        roots = ("/usr", *self.settings.readonly_paths)
        return any(real.startswith(root.rstrip("/") + "/") for root in roots)


def _inherited(settings: HostSettings) -> Dict[str, str]:
    if not settings.inherit_env:
        return {}
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(settings.hidden_env or ("\0",))
    }


def _proxy_variables(url: str) -> Dict[str, str]:
    if not url:
        return {}
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    here = "localhost,127.0.0.1,::1"
    return dict(dict.fromkeys(names, url), no_proxy=here, NO_PROXY=here)


def _started(parts: SlotParts, begin: Callable[[int, int, SlotParts], int]) -> SlotProcess:
    """A process that `begin` begins, given its ends of its stream and of the pipe for its complaints."""
    ours, theirs, errors, errors_end = _channels()
    try:
        pid = begin(theirs.fileno(), errors_end, parts)
    except (OSError, HostError):
        ours.close()
        os.close(errors)
        raise
    finally:
        theirs.close()
        os.close(errors_end)
    return SlotProcess(pid, ours, errors, parts)


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
