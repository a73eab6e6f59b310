"""Running allocations on an emulated node: a real process each, with the events and the restarts that a client of the
cluster would report.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.emulators.nomad.containers import INSIDE, container_name, run_words
from tests.emulators.nomad.model import EVENTS_KEPT, Alloc

if TYPE_CHECKING:
    from tests.emulators.nomad.cluster import Cluster

_JITTER = 0.25
_VARIABLE = re.compile(r"\$\{([\w.]+)\}")
_NS = 1e9


class TaskRunner:
    """Runs the one task of an allocation until it is over."""

    def __init__(self, cluster: Cluster, alloc: Alloc, folder: Path) -> None:
        self._cluster = cluster
        self._alloc = alloc
        self._folder = folder
        self._task: dict[str, Any] = alloc.group["Tasks"][0]
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.state: dict[str, Any] = {
            "State": "pending",
            "Failed": False,
            "Restarts": 0,
            "LastRestart": None,
            "StartedAt": None,
            "FinishedAt": None,
            "Events": [],
        }
        self._window_began = 0.0
        self._failures = 0

    @property
    def pid(self) -> int | None:
        """Of the task's process, while there is one."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        """Begin."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the process, gently and then not, and return when it is gone."""
        self._stopping.set()
        if self._running is not None:
            await self._running

    def kill(self) -> None:
        """As a machine does that loses its power: no event, no farewell."""
        if self._in_container and self.pid is not None:
            name = container_name(self._alloc.alloc_id)
            quiet = asyncio.subprocess.DEVNULL
            self._cluster.spawn(
                asyncio.create_subprocess_exec("docker", "kill", name, stdout=quiet, stderr=quiet)
            )
        else:
            self._signal(signal.SIGKILL)

    @property
    def _in_container(self) -> bool:
        return bool(self._task["Driver"] == "docker" and self._cluster.has_engine)

    def _signal(self, number: int) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and is not waited for yet
                os.kill(self.pid, number)

    # --- life --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._event("Received", "Task received by client")
        self._event("Task Setup", "Building Task Directory")
        try:
            while not self._stopping.is_set():
                failure = await self._run_once()
                if self._stopping.is_set() or not await self._restarts(failure):
                    break
        finally:
            self._end(failed=not self._stopping.is_set())
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _run_once(self) -> str:
        reason = self._cluster.why_no_image(self._task)
        if reason:
            self._event("Driver Failure", reason)
            return reason
        try:
            self._process = await self._spawn()
        except OSError as error:
            reason = f"failed to launch command with executor: {error}"
            self._event("Driver Failure", reason)
            return reason
        self.state.update(State="running", StartedAt=_now())
        self._event("Started", "Task started by client")
        ended = asyncio.create_task(self._process.wait())
        told = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end_process(ended)
        finally:
            told.cancel()
        code = ended.result()
        details = {
            "exit_code": str(max(code, 0)),
            "signal": str(max(-code, 0)),
            "oom_killed": "false",
        }
        message = f"Exit Code: {max(code, 0)}" + (f", Signal: {-code}" if code < 0 else "")
        self._event("Terminated", message, details)
        return message

    async def _end_process(self, ended: asyncio.Task[int]) -> None:
        timeout_s = int(self._task.get("KillTimeout") or 5 * _NS) / _NS
        self._event("Killing", f"Sent interrupt. Waiting {timeout_s:g}s before force killing")
        self._signal(signal.Signals[self._task.get("KillSignal") or "SIGINT"])
        await asyncio.wait({ended}, timeout=timeout_s)
        if not ended.done():
            self.kill()
            await ended
        self._event("Killed", "Task successfully killed")

    async def _restarts(self, failure: str) -> bool:
        policy = self._alloc.group.get("RestartPolicy") or {}
        attempts = int(policy.get("Attempts", 2))
        interval_s = int(policy.get("Interval", 1800 * _NS)) / _NS
        now = time.monotonic()
        if now - self._window_began > interval_s * self._cluster.time_factor:
            self._window_began, self._failures = now, 0
        self._failures += 1
        if self._failures > attempts:
            self._event(
                "Not Restarting",
                f"Exceeded allowed attempts {attempts} in interval {interval_s:g}s and mode is "
                f'"{policy.get("Mode", "fail")}"',
            )
            return False
        delay_s = int(policy.get("Delay", 15 * _NS)) / _NS
        delay_s *= 1 + _JITTER * self._cluster.faults.chance.random()
        self.state.update(State="pending", Restarts=self.state["Restarts"] + 1, LastRestart=_now())
        self._event("Restarting", f"Task restarting in {delay_s:g}s")
        try:
            async with asyncio.timeout(delay_s * self._cluster.time_factor):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False

    def _end(self, *, failed: bool) -> None:
        self.state.update(State="dead", Failed=failed, FinishedAt=_now())
        self._report()

    def _event(self, kind: str, message: str, details: dict[str, str] | None = None) -> None:
        event = {"Type": kind, "Time": time.time_ns(), "DisplayMessage": message}
        event["Details"] = details or {}
        self.state["Events"] = [*self.state["Events"], event][-EVENTS_KEPT:]
        self._report()

    def _report(self) -> None:
        self._cluster.report(self._alloc, self._task["Name"], dict(self.state))

    # --- the process -------------------------------------------------------------------------------

    async def _spawn(self) -> asyncio.subprocess.Process:
        local, secret, shared = (self._folder / name for name in ("local", "secrets", "alloc"))
        for path in (local, secret, shared):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o777)
        for template in self._task.get("Templates") or ():
            path = self._folder / template["DestPath"]
            path.write_text(template["EmbeddedTmpl"], encoding="utf-8")
            path.chmod(int(template.get("Perms") or "0644", 8))
        environment = self._environment(local, secret, shared)
        words = self._words(environment)
        log = os.open(
            self._folder.parent / f"{self._folder.name}.stderr",
            os.O_CREAT | os.O_APPEND | os.O_WRONLY,
        )
        try:
            return await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _environment(self, local: Path, secret: Path, shared: Path) -> dict[str, str]:
        label = self._alloc.group["Networks"][0]["DynamicPorts"][0]["Label"]
        return {
            "PATH": os.environ["PATH"],
            "NOMAD_ALLOC_ID": self._alloc.alloc_id,
            "NOMAD_ALLOC_NAME": self._alloc.name,
            "NOMAD_ALLOC_DIR": str(shared),
            "NOMAD_TASK_DIR": str(local),
            "NOMAD_SECRETS_DIR": str(secret),
            "NOMAD_JOB_ID": self._alloc.job["ID"],
            f"NOMAD_IP_{label}": self._alloc.node.ip,
            f"NOMAD_PORT_{label}": str(self._alloc.port),
            f"NOMAD_ADDR_{label}": f"{self._alloc.node.ip}:{self._alloc.port}",
        }

    def _words(self, environment: dict[str, str]) -> list[str]:
        if not self._in_container:
            return self._filled_in(environment)
        inside = {**environment, **INSIDE}
        folders = {name: Path(environment[name]) for name in INSIDE}
        place = (self._alloc.node.ip, self._alloc.port)
        return run_words(self._task, self._filled_in(inside), inside, folders, place)

    def _filled_in(self, environment: dict[str, str]) -> list[str]:
        config = self._task["Config"]
        words = [*config.get("entrypoint", ()), *filter(None, [config.get("command")])]
        words += config.get("args", ())
        return [
            _VARIABLE.sub(lambda name: environment.get(name[1], name[0]), word) for word in words
        ]


def free_port(ip: str) -> int:
    """A port of this address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
