"""A sandbox: a folder as its file system, and commands that bubblewrap confines to it.

Like the containers of the service it has a root of its own: commands run as root there, with the capabilities that a
container's root has, see a file system that they can write, and nothing of the machine but its programs.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modal_proto import api_pb2

from tests.emulators.modal.leftovers import kill_processes_of
from tests.emulators.modal.process import Command

FS_TOOLS = Path(__file__).with_name("fs_tools.py")
BWRAP = shutil.which("bwrap") or "bwrap"
DEFAULT_LIFETIME_S = 300
_MOMENT_S = 0.02
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
BARE = "/bare"
"""Where an image without Python has its programs."""
_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETPCAP",
    "CAP_SETUID",
)  # fmt: skip
_FOLDERS = {"tmp": 0o1777, "var/tmp": 0o1777, "run": 0o755, "root": 0o700, "home": 0o755}
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
Status = api_pb2.GenericResult.GenericStatus


@dataclass
class Sandbox:
    """One sandbox, from its creation on; its record stays when it has ended."""

    sandbox_id: str
    task_id: str
    app_id: str
    definition: api_pb2.Sandbox
    tags: dict[str, str]
    environment: Mapping[str, str]
    folder: Path
    without_python: bool = False
    image_workdir: str = ""
    created_at: float = field(default_factory=time.time)
    result: api_pb2.GenericResult | None = None
    commands: dict[str, Command] = field(default_factory=dict)
    main: Command | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _timers: list[asyncio.TimerHandle] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _starting: int = 0
    """Commands that are being started."""

    @property
    def is_v1(self) -> bool:
        return len(self.sandbox_id) == len("sb-") + 22

    async def begin(self, copy_of: Path | None, image_environment: Mapping[str, str]) -> None:
        """Make its file system, from a snapshot's if there is one, and start its main command."""
        self.environment = {**image_environment, **self.environment}
        if copy_of is not None:
            await copy_tree(copy_of, self.folder)
        else:
            lay_out(self.folder)
        loop = asyncio.get_running_loop()
        lifetime_s = self.definition.timeout_secs or DEFAULT_LIFETIME_S
        self._timers.append(loop.call_later(lifetime_s, self.end, Status.GENERIC_STATUS_TIMEOUT))
        if self.definition.entrypoint_args:
            self.main = await self._command(list(self.definition.entrypoint_args), {}, "", 0.0)
            self._spawn(self._follow_main(self.main))
        self._spawn(self._watch_idleness())

    async def execute(
        self,
        exec_id: str,
        arguments: list[str],
        environment: Mapping[str, str],
        workdir: str,
        timeout_s: float,
    ) -> None:
        """Start a command, once for an id."""
        if exec_id not in self.commands:
            self.commands[exec_id] = await self._command(arguments, environment, workdir, timeout_s)

    def end(self, status: "Status.ValueType", code: int = 0) -> None:
        """Kill everything in it. The first reason stays."""
        if self.result is not None:
            return
        self.result = api_pb2.GenericResult(status=status, exitcode=code)
        for timer in self._timers:
            timer.cancel()
        for command in self._all_commands():
            command.kill()
        self.ended.set()
        self._spawn(self._clear_away())

    async def gone(self) -> None:
        """Return when nothing of it is left, whoever waits for that."""
        while self._tasks - {asyncio.current_task()}:
            await asyncio.wait(self._tasks)

    def _all_commands(self) -> list[Command]:
        return [*self.commands.values(), *([self.main] if self.main else [])]

    async def _clear_away(self) -> None:
        # Bubblewrap that is killed just after it has made its child leaves one, and as long as that has its pipes the
        # command does not count as exited.
        while self._starting or not all(each.exited.is_set() for each in self._all_commands()):
            kill_processes_of(self.folder)
            await asyncio.sleep(_MOMENT_S)
        kill_processes_of(self.folder)
        for command in self._all_commands():
            command.watching.cancel()
            for output in command.outputs.values():
                await output.end()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def _follow_main(self, main: Command) -> None:
        await main.exited.wait()
        code = main.code or 0
        status = Status.GENERIC_STATUS_FAILURE if code else Status.GENERIC_STATUS_SUCCESS
        self.end(status, code if code >= 0 else 128 - code)

    async def _watch_idleness(self) -> None:
        limit_s = self.definition.idle_timeout_secs
        since = time.monotonic()
        while limit_s and self.result is None:
            if any(not command.exited.is_set() for command in self.commands.values()):
                since = time.monotonic()
            elif time.monotonic() - since >= limit_s:
                self.end(Status.GENERIC_STATUS_IDLE_TIMEOUT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), 0.1)

    async def _command(
        self, arguments: list[str], environment: Mapping[str, str], workdir: str, timeout_s: float
    ) -> Command:
        path = BARE if self.without_python else PATH
        variables = {"PATH": path, "HOME": "/root", **self.environment, **environment}
        place = ["--chdir", workdir or self.definition.workdir or self.image_workdir or "/root"]
        argv = [*confined(self.folder, network=self._has_network), *place, "--", *arguments]
        self._starting += 1
        try:
            command = await Command.start(argv, variables, timeout_s)
        finally:
            self._starting -= 1
        if self.result is not None:
            command.kill()
        return command

    @property
    def _has_network(self) -> bool:
        access = self.definition.network_access.network_access_type
        return access != api_pb2.NetworkAccess.NetworkAccessType.BLOCKED

    def _spawn(self, work) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def confined(folder: Path, *, network: bool) -> list[str]:
    """How a command is started that has this folder as its root."""
    argv = [BWRAP, "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    argv += [] if network else ["--unshare-net"]
    argv += ["--die-with-parent", "--new-session", "--bind", str(folder), "/"]
    argv += ["--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--dev", "/dev"]
    argv += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    argv += ["--ro-bind", str(FS_TOOLS), "/__modal/.bin/modal-sandbox-fs-tools"]
    if os.geteuid() == 0:
        argv += [word for name in _CAPABILITIES for word in ("--cap-add", name)]
    return argv


def lay_out(folder: Path) -> None:
    for name, mode in _FOLDERS.items():
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(mode)
    for name, target in _LINKS.items():
        (folder / name).symlink_to(target)
    (folder / BARE[1:]).mkdir()
    for name in ("sh", "sleep", "cat"):
        (folder / BARE[1:] / name).symlink_to(f"/usr/bin/{name}")


async def copy_tree(source: Path, target: Path) -> None:
    """With owners and modes. Raises `OSError`."""
    copying = await asyncio.create_subprocess_exec("cp", "-a", str(source), str(target))
    if await copying.wait():
        raise OSError(f"{source} could not be copied")
