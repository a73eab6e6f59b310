"""Long histories of a persistent shell: whatever is withdrawn, overrun or done between its calls, it loses and makes up
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from agentenv_backends.requests import ReadRequest, RecordingRequest
from agentenv_backends.results import ExecStatus, ReadResult, RecordingResult
from tests.agentenv_backends.sandboxd.terminals import output, shell
from tests.waiting import WITHIN_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.agentenv_backends.sandboxd.harness import RunningHost

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]
_STEPS = 150


@pytest_asyncio.fixture(loop_scope="module")
async def host(lasting_host: RunningHost) -> AsyncIterator[RunningHost]:
    """A host with one new slot, `a`."""
    await lasting_host.connection.open_slot("a")
    yield lasting_host
    await lasting_host.connection.close_slot("a")


class History:
    """Does one thing after another in a shell that counts, and knows what each has to say."""

    def __init__(self, host: RunningHost, seed: int) -> None:
        self._host = host
        self._chance = random.Random(seed)
        self._count = 0

    async def go_on(self) -> None:
        await self._chance.choice(
            (
                self._counts,
                self._counts,
                self._says_little_or_much,
                self._takes_its_time,
                self._is_withdrawn,
                self._is_overrun,
                self._leaves_a_job,
                self._fails,
                self._lets_others_do_something,
            )
        )()

    async def _counts(self) -> None:
        self._count += 1
        assert await output(self._host, "i=$((i+1)); echo $i") == f"{self._count}\n"

    async def _says_little_or_much(self) -> None:
        size = self._chance.choice((0, 1, 60_000, 65_536, 70_000, 300_000))
        result = await shell(self._host, f"head -c {size} /dev/zero | tr '\\0' a")
        assert (result.stdout.total_bytes, result.stderr.total_bytes) == (size, 0)

    async def _takes_its_time(self) -> None:
        pause_s = self._chance.choice((0.02, 0.045, 0.05, 0.055, 0.08))
        result = await shell(self._host, f"echo a; sleep {pause_s}; echo b; echo c >&2; (exit 3)")
        said = (result.stdout.text(), result.stderr.text(), result.exit_code)
        assert said == ("a\nb\n", "c\n", 3)

    async def _is_withdrawn(self) -> None:
        asked = asyncio.create_task(shell(self._host, "j=1; sleep 100; j=2"))
        await asyncio.sleep(self._chance.choice((0, 0, 0.0005, 0.01, 0.049, 0.051)))
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        assert await output(self._host, "echo $j; j=0") in ("1\n", "0\n", "\n")

    async def _is_overrun(self) -> None:
        within_s = self._chance.choice((0.1, 0.19, 0.21))
        result = await shell(self._host, "echo begun; sleep 100", timeout_s=within_s)
        assert (result.status, result.shell_ended) == (ExecStatus.TIMED_OUT, False)
        assert result.stdout.text() in ("begun\n", "")

    async def _leaves_a_job(self) -> None:
        after_s = self._chance.choice((0, 0.01, 0.05))
        said = await output(self._host, f"(sleep {after_s}; echo done) &")
        async with asyncio.timeout(WITHIN_S):
            while "done" not in said:
                said += await output(self._host, "true")
        assert said == "done\n"

    async def _fails(self) -> None:
        code = self._chance.randrange(256)
        assert (await shell(self._host, f"(exit {code})")).exit_code == code
        assert await output(self._host, "echo $?") == f"{code}\n"

    async def _lets_others_do_something(self) -> None:
        word = f"{self._chance.random()}"
        await shell(self._host, f"echo {word} > word")
        fresh = await self._host.run('cat word; echo "[$i]"')
        assert fresh.stdout.text() == f"{word}\n[]\n"
        read = await self._host.execute(ReadRequest("word"))
        assert isinstance(read, ReadResult)
        assert read.content == f"{word}\n".encode()
        assert isinstance(await self._host.execute(RecordingRequest()), RecordingResult)
        assert (await self._host.run(("cat", "word"))).stdout.text() == f"{word}\n"


@pytest.mark.parametrize("seed", range(3))
async def test_a_shell_loses_and_makes_up_nothing(host: RunningHost, seed: int) -> None:
    await shell(host, "i=0")
    history = History(host, seed)
    for _ in range(_STEPS):
        await history.go_on()
