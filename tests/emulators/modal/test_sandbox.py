"""What an emulated sandbox leaves behind: nothing, whenever it ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from modal_proto import api_pb2

from tests.emulators.modal.leftovers import processes_of
from tests.emulators.modal.sandbox import Sandbox, Status
from tests.waiting import WITHIN_S

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


async def test_one_that_ends_while_its_commands_start_leaves_nothing(tmp_path: Path):
    for number in range(100):
        sandbox = Sandbox(
            f"sb-{number}", "ta", "ap", api_pb2.Sandbox(), {}, {}, tmp_path / str(number)
        )
        await sandbox.begin(None, {})
        starting = asyncio.create_task(sandbox.execute("e", ["sleep", "600"], {}, "", 0.0))
        await asyncio.sleep(number * 1e-4)
        sandbox.end(Status.GENERIC_STATUS_TERMINATED)
        async with asyncio.timeout(WITHIN_S):
            await sandbox.gone()
        await starting
        assert processes_of(sandbox.folder) == []
        assert not sandbox.folder.exists()
