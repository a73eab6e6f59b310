"""The gate of a host lets in one driver at a time, which has the run's key and means this very host."""
# mypy: disable-error-code="no-untyped-call"

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import agentenv_backends.sandboxd
from agentenv_backends.config import NomadConfig
from agentenv_backends.connection import connect_host
from agentenv_backends.errors import HostStartError
from agentenv_backends.nomad.job import host_settings
from agentenv_backends.nomad.knock import GateClosedError, TakenError, WrongHostError, knock
from agentenv_backends.requests import ExecRequest
from agentenv_backends.sandboxd import leftovers

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
GATE = Path(agentenv_backends.sandboxd.__file__).parent / "gate.py"
HOST = "11111111-2222-3333-4444-555555555555"
WITHIN_S = 60.0


@dataclass
class RunningGate:
    process: asyncio.subprocess.Process
    address: tuple[str, int]
    key: str
    folder: Path

    async def knock(self, key=None, host=HOST, who="a test"):
        """Be let in, once the gate listens and whoever was there before has gone."""
        deadline = asyncio.get_running_loop().time() + WITHIN_S
        while True:
            try:
                return await knock(self.address, key or self.key, host, who)
            except GateClosedError:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.05)

    async def connect(self):
        stream, welcome = await self.knock()
        config = NomadConfig(driver="raw_exec", slots=2, disk_mb=16, memory_mb=128)
        settings = host_settings(config, "gate-test", self.address[1], welcome)
        return await connect_host(stream, "h", settings)

    async def ended(self):
        async with asyncio.timeout(WITHIN_S):
            return await self.process.wait()


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()


@asynccontextmanager
async def gate(folder, *, patience_s=600.0):
    key_file, key, address = folder / "key", secrets.token_hex(32), free_address()
    key_file.write_text(key)
    words = [
        *(sys.executable, "-I", "-S", str(GATE)),
        *("--key", str(key_file), "--host", HOST, "--folder", str(folder)),
        *("--bind", address[0], "--port", str(address[1]), "--patience", str(patience_s)),
    ]
    process = await asyncio.create_subprocess_exec(
        *words, stderr=asyncio.subprocess.DEVNULL, env={"PATH": os.environ["PATH"], "SECRET": "x"}
    )
    try:
        yield RunningGate(process, address, key, folder)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_who_has_the_key_gets_a_sandbox_server(tmp_path):
    async with gate(tmp_path) as running:
        host = await running.connect()
        await host.open_slot("s")
        answer = await host.execute("s", ExecRequest("echo $((6 * 7)); env"))
        assert answer.stdout.text().startswith("42\n")
        assert "SECRET" not in answer.stdout.text()
        await host.close()


async def test_another_key_and_another_host_are_refused(tmp_path):
    async with gate(tmp_path) as running:
        with pytest.raises(WrongHostError, match="another key"):
            await running.knock(key=secrets.token_hex(32))
        with pytest.raises(WrongHostError, match=f"this is host {HOST}, not other"):
            await running.knock(host="other")
        await (await running.connect()).close()


async def test_what_is_not_a_gate_with_the_key_is_not_spoken_to(tmp_path):
    """It never learns the key, and never gets the program."""
    heard = bytearray()

    async def pretend(reader, writer):
        writer.write(json.dumps({"gate": 1, "nonce": "0" * 64}).encode() + b"\n")
        heard.extend(await reader.readline())
        said = {"proof": "0" * 64, "folder": "/", "ids": 1, "directory": "/"}
        writer.write(json.dumps(said).encode() + b"\n")
        heard.extend(await reader.read())
        writer.close()

    key = secrets.token_hex(32)
    async with await asyncio.start_server(pretend, "127.0.0.1", 0) as server:
        with pytest.raises(WrongHostError, match="does not have this run's key"):
            await knock(server.sockets[0].getsockname(), key, HOST, "a test")
        await asyncio.sleep(0)
    assert heard.count(b"\n") == 1
    assert key.encode() not in heard


async def test_one_driver_at_a_time_and_the_next_when_it_is_gone(tmp_path):
    async with gate(tmp_path) as running:
        host = await running.connect()
        with pytest.raises(TakenError, match="a test"):
            await running.knock()
        await host.close()
        deadline = asyncio.get_running_loop().time() + WITHIN_S
        while True:
            try:
                second = await running.connect()
                break
            except TakenError:  # the server of the first is still on its way out
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.05)
        await second.close()


async def test_who_says_nothing_or_nonsense_keeps_nobody_out(tmp_path):
    async with gate(tmp_path) as running:
        stream, _ = await running.knock()
        stream.close()
        silent = [await asyncio.open_connection(*running.address) for _ in range(40)]
        _, rude = silent[0]
        rude.write(b"\0" * 100_000)
        try:
            # Those over the number that may be in their handshakes are dropped, the rest after some seconds.
            deadline = asyncio.get_running_loop().time() + WITHIN_S
            while True:
                try:
                    host = await running.connect()
                    break
                except HostStartError:
                    assert asyncio.get_running_loop().time() < deadline
                    await asyncio.sleep(0.1)
            await host.close()
        finally:
            for _, writer in silent:
                writer.transport.abort()


async def test_a_gate_that_is_told_to_end_takes_its_server_and_slots_along(tmp_path):
    async with gate(tmp_path) as running:
        host = await running.connect()
        await host.open_slot("s")
        asked = asyncio.ensure_future(host.execute("s", ExecRequest("sleep 600", timeout_s=600)))
        children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
        (server,) = map(int, children.read_text().split())
        family = leftovers.Owner(server, leftovers.start_time(server) or 0)
        running.process.send_signal(signal.SIGINT)
        assert await running.ended() == 0
        assert not family.is_alive()
        with pytest.raises(Exception, match=r"gone|closed|SIGTERM"):
            await asked
        await host.close()


async def test_a_gate_that_is_killed_takes_its_server_along(tmp_path):
    async with gate(tmp_path) as running:
        host = await running.connect()
        lost = asyncio.get_running_loop().create_future()
        host.on_lost(lost.set_result)
        running.process.kill()
        async with asyncio.timeout(WITHIN_S):
            await lost
        await host.close()


async def test_without_a_driver_it_ends_and_stays_ended(tmp_path):
    async with gate(tmp_path, patience_s=0.5) as running:
        assert await running.ended() == 1
    async with gate(tmp_path, patience_s=600) as restarted:
        assert await restarted.ended() == 1
