"""A driver to be killed: it fills the slots of hosts with busy commands, says so, and waits.

Arguments: address, hosts, further settings as JSON.
"""

import asyncio
import json
import sys

from agentenv_backends.config import NomadConfig
from agentenv_backends.nomad.provider import NomadProvider
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest
from tests.agentenv_backends.nomad.cluster import SMALL

BUSY = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &) ; sleep 600"


async def main(address: str, hosts: int, settings: str) -> None:
    values = {**SMALL, "address": address, "max_hosts": hosts, **json.loads(settings)}
    config = NomadConfig.model_validate(values)
    provider = NomadProvider(config)
    async with SlotPool(provider, config.pool_settings()) as pool:
        held = await asyncio.gather(*(pool.acquire(f"t{n}") for n in range(hosts)))
        calls = [
            asyncio.create_task(pool.execute(slot, ExecRequest(BUSY, timeout_s=600)))
            for slot in held
        ]
        sys.stdout.write(f"busy {provider.job_id}\n")
        sys.stdout.flush()
        await asyncio.gather(*calls)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "{}"))
