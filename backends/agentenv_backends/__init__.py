"""Where commands run: slots in sandboxes, behind one `Backend` contract.

    backend = parse_backend_config({"type": "local"}).build()
    await backend.start()
    slot = await backend.acquire("trajectory-1")
    result = await backend.execute(slot, ExecRequest("echo hi"))
    await backend.release(slot)
    await backend.stop()

The contract is `base.py`, what can be asked is `requests.py`, what is answered `results.py`, what
can go wrong `errors.py`; `host.py` is what a new way of starting hosts has to provide. Fakes for
tests are in `testing.py`, and `doctor.py` shows which protections are in force on a machine.
"""

from agentenv_backends.base import Backend, Capabilities, PoolStats, Slot, SlotState
from agentenv_backends.config import BackendConfig, LocalConfig, PoolConfig, parse_backend_config
from agentenv_backends.errors import (
    AcquireTimeoutError,
    BackendConfigError,
    BackendError,
    BackendStoppedError,
    BackendUnavailableError,
    CapabilityError,
    HostLostError,
    HostStartError,
    InfrastructureError,
    SandboxTimeoutError,
    SlotExhaustedError,
    SlotLostError,
    SlotStateError,
)
from agentenv_backends.host import Host, HostProvider
from agentenv_backends.requests import (
    ArchiveRequest,
    ExecRequest,
    KillRequest,
    ListRequest,
    ReadRequest,
    Request,
    WriteRequest,
)
from agentenv_backends.results import (
    ArchiveResult,
    Capture,
    Entry,
    ExecResult,
    ExecStatus,
    FailureKind,
    KillResult,
    ListResult,
    OpFailure,
    ReadResult,
    Result,
    WriteResult,
)
from agentenv_backends.settings import Limits, PoolSettings

__all__ = [
    "AcquireTimeoutError",
    "ArchiveRequest",
    "ArchiveResult",
    "Backend",
    "BackendConfig",
    "BackendConfigError",
    "BackendError",
    "BackendStoppedError",
    "BackendUnavailableError",
    "Capabilities",
    "CapabilityError",
    "Capture",
    "Entry",
    "ExecRequest",
    "ExecResult",
    "ExecStatus",
    "FailureKind",
    "Host",
    "HostLostError",
    "HostProvider",
    "HostStartError",
    "InfrastructureError",
    "KillRequest",
    "KillResult",
    "Limits",
    "ListRequest",
    "ListResult",
    "LocalConfig",
    "OpFailure",
    "PoolConfig",
    "PoolSettings",
    "PoolStats",
    "ReadRequest",
    "ReadResult",
    "Request",
    "Result",
    "SandboxTimeoutError",
    "Slot",
    "SlotExhaustedError",
    "SlotLostError",
    "SlotState",
    "SlotStateError",
    "WriteRequest",
    "WriteResult",
    "parse_backend_config",
]
