"""Pools over an emulated Modal that may be broken on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agentenv_backends.config import ModalConfig
from agentenv_backends.modal.provider import ModalProvider
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from tests.emulators.modal.running import EmulatedModal
from tests.modal_service import MODAL, why_no_emulated_modal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from agentenv_backends.base import Slot


@pytest.fixture(scope="module")
def server() -> Iterator[EmulatedModal]:
    """One for the tests of a module, whose client finds it."""
    if reason := why_no_emulated_modal():
        pytest.skip(reason)
    with EmulatedModal() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


class Ground:
    """A pool over sandboxes, and what there is of them."""

    def __init__(self, config: ModalConfig) -> None:
        self.provider = ModalProvider(config)
        self.pool = SlotPool(self.provider, config.pool_settings())

    def name_of(self, slot: Slot) -> str:
        return self.provider.sandbox_names[slot.host_id]

    async def say(self, slot: Slot, command: str) -> str:
        result = await self.pool.execute(slot, ExecRequest(command))
        assert isinstance(result, ExecResult), result
        assert result.exit_code == 0, result
        return result.stdout.text()


def small(**more: Any) -> ModalConfig:
    values = {"slots": 2, "max_hosts": 2, "warm_slots": 0, **MODAL, **more}
    return ModalConfig.model_validate(values)


@pytest.fixture
async def start(server: EmulatedModal) -> AsyncIterator[Callable[..., Awaitable[Ground]]]:
    """Starts pools; in the end they are stopped and the server is well again, and nothing is left in it."""
    grounds: list[Ground] = []

    async def start(**settings: Any) -> Ground:
        ground = Ground(small(**settings))
        grounds.append(ground)
        await ground.pool.start()
        return ground

    yield start
    server.heal()
    for ground in grounds:
        await ground.pool.stop()
    left = server.sandboxes(), server.processes()
    if left != ([], []):  # what one test leaves is not to fail those after it
        server.kill()
        server.start()
    assert left == ([], [])
