"""A driver to be killed: it takes a slot in the app of the name given, says the name of its sandbox, and waits."""

import asyncio
import sys

from tests.agentenv_backends.modal.conftest import Ground, small


async def main() -> None:
    ground = Ground(small(app_name=sys.argv[1]))
    async with ground.pool:
        slot = await ground.pool.acquire("t")
        sys.stdout.write(ground.name_of(slot) + "\n")
        sys.stdout.flush()
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main())
