"""`python -m tests.emulators.modal FOLDER TOKEN_ID TOKEN_SECRET [PORT]`: serve on loopback until standard input ends.

It says `{"port": ...}`, then answers orders, one JSON object a line each way:

    {"do": "fault", "rpc": "SandboxCreateV2", "status": "UNAVAILABLE", "probability": 0.3, ...}
    {"do": "heal"}                          no more faults
    {"do": "end", "sandbox_id": "sb-...", "status": "GENERIC_STATUS_TIMEOUT", "code": 124}
    {"do": "secret", "name": "...", "env": {...}}
    {"do": "calls"} {"do": "sandboxes"}     what was called; what there is, ended ones included
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from grpclib.server import Server
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_grpc, task_command_router_grpc

from tests.emulators.modal.control import Control
from tests.emulators.modal.router import Router
from tests.emulators.modal.rpc import Fault, Gate, service
from tests.emulators.modal.sandbox import Sandbox
from tests.emulators.modal.sandbox import Status as Result
from tests.emulators.modal.state import State, new_id


class Orders:
    """What whoever started the server may ask of it."""

    def __init__(self, state: State, gate: Gate) -> None:
        self._state = state
        self._gate = gate

    async def obey(self, order: dict[str, Any]) -> Any:
        return await getattr(self, f"_{order.pop('do')}")(**order)

    async def _fault(self, rpc: str, **fault: Any) -> None:
        self._gate.faults[rpc] = Fault(**fault)

    async def _heal(self) -> None:
        self._gate.faults.clear()
        self._gate.struck.clear()

    async def _end(self, sandbox_id: str, status: str, code: int = 0) -> None:
        sandbox = self._state.sandboxes[sandbox_id]
        sandbox.end(Result.Value(status), code)
        await sandbox.gone()

    async def _secret(self, name: str, env: dict[str, str]) -> None:
        secret_id = self._state.named_secrets[name] = new_id("st", 22)
        self._state.secrets[secret_id] = env
        self._state.save()

    async def _calls(self) -> dict[str, int]:
        return dict(self._gate.calls)

    async def _sandboxes(self) -> list[dict[str, Any]]:
        return [_described(sandbox) for sandbox in self._state.sandboxes.values()]


def _described(sandbox: Sandbox) -> dict[str, Any]:
    definition = sandbox.definition
    resources = definition.resources
    return {
        "id": sandbox.sandbox_id,
        "name": definition.name,
        "tags": sandbox.tags,
        "alive": sandbox.result is None,
        "status": Result.Name(sandbox.result.status) if sandbox.result else "",
        "image_id": definition.image_id,
        "timeout": definition.timeout_secs,
        "idle_timeout": definition.idle_timeout_secs,
        "cpu": [resources.milli_cpu, resources.milli_cpu_max],
        "memory": [resources.memory_mb, resources.memory_mb_max],
        "gpu": resources.gpu_config.gpu_type,
        "gpus": resources.gpu_config.count,
        "regions": list(definition.scheduler_placement.regions),
        "cloud": definition.cloud_provider_str,
        "network": definition.network_access.network_access_type,
        "allowed": [
            *definition.network_access.allowed_domains,
            *definition.network_access.allowed_cidrs,
        ],
        "environment": dict(sandbox.environment),
    }


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main(folder: str, token_id: str, token_secret: str, port: str = "0") -> None:
    state = State.load(Path(folder))
    gate = Gate(token_id, token_secret)
    services = [
        service(api_grpc.ModalClientBase, Control(state, gate), gate),
        service(task_command_router_grpc.TaskCommandRouterBase, Router(state), gate),
    ]
    server = Server(services, status_details_codec=custom_detail_codec)
    await server.start("127.0.0.1", int(port))
    assert isinstance(server._server, asyncio.Server)
    bound = server._server.sockets[0].getsockname()[1]
    state.url = f"http://127.0.0.1:{bound}"
    orders = Orders(state, gate)
    lines = await _lines()
    _say({"port": bound})
    while line := await lines.readline():
        try:
            _say({"answer": await orders.obey(json.loads(line))})
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            _say({"error": repr(error)})
    server.close()
    await state.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
