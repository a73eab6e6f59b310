"""A driver to be killed: it fills slots with busy commands, says so, and waits.

Arguments: slots, isolation, and `exit` to end by itself, without having stopped its pool.
"""

import asyncio
import os
import sys

from agentenv_backends.config import LocalConfig
from agentenv_backends.local import LocalProvider
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest
from tests.processes import descendants

BUSY = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &) ; sleep 600"


async def main(slots: int, isolation: str, end: str) -> None:
    network = isolation == "none"
    values = {"slots": slots, "isolation": isolation, "allow_network": network}
    config = LocalConfig.model_validate(values)
    provider = LocalProvider(config)
    pool = SlotPool(provider, config.pool_settings())
    await pool.start()
    held = await asyncio.gather(*(pool.acquire(f"t{n}", timeout_s=120) for n in range(slots)))
    busy = [pool.execute(slot, ExecRequest(BUSY, timeout_s=600)) for slot in held]
    calls = asyncio.gather(*busy, return_exceptions=True)
    while _busy_commands() < slots:
        await asyncio.sleep(0.02)
    pids = [str(host.pid) for host in provider.hosts.values()]
    sys.stdout.write(f"busy {' '.join(pids)}\n")
    sys.stdout.flush()
    if end == "exit":
        sys.exit(0)
    async with pool:
        await calls


def _busy_commands() -> int:
    return sum(each.command == ["sleep", "600"] for each in descendants(os.getpid()))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
