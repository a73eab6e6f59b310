"""A driver to be killed: it fills the slots of containers with busy commands, says so, and waits.

Arguments: image, containers, slots of each, and anything more for a service beside each.
"""

import asyncio
import sys

from agentenv_backends.config import DockerConfig
from agentenv_backends.config.services import ServiceConfig
from agentenv_backends.docker.provider import DockerProvider
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest

BUSY = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &) ; sleep 600"


async def main(image: str, containers: int, slots: int, *more: str) -> None:
    service = {"name": "db", "image": image, "command": ("sleep", "600"), "memory_mb": 64}
    config = DockerConfig(
        read_only_root=not more,
        services=(ServiceConfig.model_validate(service),) if more else (),
        image=image,
        pull="never",
        slots=slots,
        max_hosts=containers,
        disk_mb=8,
        tmp_mb=4,
        acquire_timeout_s=120,
    )
    provider = DockerProvider(config)
    async with SlotPool(provider, config.pool_settings()) as pool:
        held = await asyncio.gather(*(pool.acquire(f"t{n}") for n in range(containers * slots)))
        calls = [
            asyncio.create_task(pool.execute(slot, ExecRequest(BUSY, timeout_s=600)))
            for slot in held
        ]
        await asyncio.sleep(0.5)
        names = sorted({provider.container_names[slot.host_id] for slot in held})
        sys.stdout.write(f"busy {' '.join(names)}\n")
        sys.stdout.flush()
        await asyncio.gather(*calls)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
