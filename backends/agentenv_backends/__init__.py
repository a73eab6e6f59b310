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
from agentenv_backends.config import (
    BackendConfig,
    DockerConfig,
    LocalConfig,
    PoolConfig,
    parse_backend_config,
)
from agentenv_backends.errors import (
    AcquireTimeoutError,
    BackendConfigError,
    BackendError,
    BackendStoppedError,
    BackendUnavailableError,
    CapabilityError,
    EngineError,
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
    EditRequest,
    ExecRequest,
    GlobRequest,
    GrepRequest,
    KillRequest,
    ListRequest,
    ReadRequest,
    Request,
    ViewRequest,
    WriteRequest,
)
from agentenv_backends.results import (
    ArchiveResult,
    Capture,
    EditResult,
    Entry,
    ExecResult,
    ExecStatus,
    FailureKind,
    GlobResult,
    GrepMatch,
    GrepResult,
    KillResult,
    ListResult,
    OpFailure,
    ReadResult,
    Result,
    ViewResult,
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
    "DockerConfig",
    "EditRequest",
    "EditResult",
    "EngineError",
    "Entry",
    "ExecRequest",
    "ExecResult",
    "ExecStatus",
    "FailureKind",
    "GlobRequest",
    "GlobResult",
    "GrepMatch",
    "GrepRequest",
    "GrepResult",
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
    "ViewRequest",
    "ViewResult",
    "WriteRequest",
    "WriteResult",
    "parse_backend_config",
]
