"""Pools over containers of a real engine, and what tests do to them from outside."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentenv_backends.config import DockerConfig
from agentenv_backends.docker import owners
from agentenv_backends.docker.engine import Engine
from agentenv_backends.docker.provider import DockerProvider
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecStatus
from tests.docker_engine import IMAGE
from tests.waiting import WITHIN_S

SOCKET = "/var/run/docker.sock"


def small(**more: Any) -> DockerConfig:
    values: dict[str, Any] = {"image": IMAGE, "pull": "never", "slots": 4, "max_hosts": 2}
    return DockerConfig(**values | {"memory_mb": 128, "disk_mb": 16, "tmp_mb": 8} | more)


class Ground:
    """A pool over containers, and what a test does to those from outside."""

    def __init__(self, config, docker):
        self.provider = DockerProvider(config)
        self.pool = SlotPool(self.provider, config.pool_settings())
        self._docker = docker

    def container(self, slot):
        name = self.provider.container_names[slot.host_id]
        return self._docker.containers.container(name)

    async def run(self, slot, command, timeout_s=30.0):
        return await self.pool.execute(slot, ExecRequest(command, timeout_s))

    async def say(self, slot, command):
        result = await self.run(slot, command)
        assert result.status is ExecStatus.EXITED, result
        return result.stdout.text()


async def existing():
    """Names of all containers of ours."""
    async with Engine() as engine:
        return {entry.name for entry in await engine.list_containers(owners.OWNER_LABEL)}


async def eventually(holds, seconds=WITHIN_S):
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.05)


def start_driver(containers, slots, *more):
    driver = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("driver.py")),
            IMAGE,
            str(containers),
            str(slots),
            *more,
        ],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]},
        text=True,
        start_new_session=True,
    )
    words = driver.stdout.readline().split()
    if words[:1] != ["busy"]:
        end_driver(driver)
        pytest.fail("the driver did not get its slots")
    return driver, set(words[1:])


def end_driver(driver):
    driver.kill()
    driver.wait()
    driver.stdout.close()
