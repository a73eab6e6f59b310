"""What all calls have in common: they are counted, may be made to fail or to be slow, and need credentials; what is
not written here answers UNIMPLEMENTED, as the service itself would.
"""

import asyncio
import inspect
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grpclib import GRPCError, Status

NO_TOKEN_NEEDED = "AuthTokenGet"


@dataclass(frozen=True)
class Fault:
    """How calls of one name are to go wrong."""

    status: str = ""
    """Name of a gRPC status; empty: they work, late if `delay_s` says so."""
    probability: float = 1.0
    delay_s: float = 0.0
    answer_lost: bool = False
    """What was asked for is done; only its answer is replaced by the status."""
    times: int = 0
    """How often; 0: until it is healed."""
    message: str = "a fault was asked for"


@dataclass
class Gate:
    """Lets calls through, or not."""

    token_id: str
    token_secret: str
    calls: Counter[str] = field(default_factory=Counter)
    """How often each RPC was called, those that were made to fail included."""
    faults: dict[str, Fault] = field(default_factory=dict)
    """By the name of an RPC; `*` is for those that have none of their own."""
    struck: Counter[str] = field(default_factory=Counter)
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    async def before(self, name: str) -> None:
        """What befalls a call when it comes in."""
        self.calls[name] += 1
        fault = self._fault(name)
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if not fault.answer_lost:
            self._strike(name, fault)

    def after(self, name: str) -> None:
        """What befalls its answer."""
        fault = self._fault(name)
        if fault.answer_lost:
            self._strike(name, fault)

    def _fault(self, name: str) -> Fault:
        fault = self.faults.get(name) or self.faults.get("*") or Fault()
        return Fault() if fault.times and self.struck[name] >= fault.times else fault

    def _strike(self, name: str, fault: Fault) -> None:
        if fault.status and self.chance.random() < fault.probability:
            self.struck[name] += 1
            raise GRPCError(Status[fault.status], fault.message)

    def check_token(self, metadata: Mapping[str, Any]) -> None:
        """Who calls the control plane says so by its token."""
        given = metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret")
        if given != (self.token_id, self.token_secret):
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID or secret is wrong")


def streaming(method):
    """Marks a method that gets the stream itself rather than its one request."""
    method.is_streaming = True
    return method


def service(base: type, methods: object, gate: Gate) -> Any:
    """An instance of a generated service class. `SandboxCreateV2` goes to `methods.sandbox_create_v2`."""
    written = {
        "".join(part.title() for part in name.split("_")): method
        for name, method in inspect.getmembers(methods, inspect.ismethod)
        if not name.startswith("_")
    }
    names: frozenset[str] = base.__abstractmethods__  # type: ignore[attr-defined]
    if unknown := set(written) - names:
        raise ValueError(f"{base.__name__} has no {', '.join(sorted(unknown))}")
    handlers = {name: _handler(name, written.get(name), methods, gate) for name in names}
    return type(base.__name__, (base,), handlers)()


def _handler(name: str, method: Any, methods: Any, gate: Gate) -> Any:
    async def handle(_self, stream):
        methods._admit(name, stream.metadata or {})
        await gate.before(name)
        if method is None:
            raise GRPCError(Status.UNIMPLEMENTED, f"{name} is not emulated")
        if getattr(method, "is_streaming", False):
            await method(stream)
            return
        answer = method(await stream.recv_message())
        answer = await answer if inspect.isawaitable(answer) else answer
        gate.after(name)
        await stream.send_message(answer)

    return handle
