"""Fixtures of tests that use a real engine."""
# mypy: disable-error-code="no-untyped-call"

import aiodocker
import pytest

from tests.agentenv_backends.docker.real import Ground, eventually, existing, small


@pytest.fixture
async def docker():
    async with aiodocker.Docker() as docker:
        yield docker


@pytest.fixture
async def ground(docker):
    """Makes pools, and stops them."""
    grounds = []

    async def make(**more):
        ground = Ground(small(**more), docker)
        grounds.append(ground)
        await ground.pool.start()
        return ground

    yield make
    for ground in grounds:
        await ground.pool.stop()
    names = {name for ground in grounds for name in ground.provider.container_names.values()}

    async def gone():  # an engine that took too long for `stop` removes them all the same
        return not names & await existing()

    await eventually(gone)
