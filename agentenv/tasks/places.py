"""A backend in use: started as a task's environment wants it, with an executor, and ended whatever happens."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agentenv.rollout import finish
from agentenv.tasks.errors import (
    EnvironmentStartTimeoutError,
    SandboxBuildFailedError,
    TaskUnsupportedError,
)
from agentenv_backends.config import parse_backend_config
from agentenv_backends.errors import (
    BackendConfigError,
    BackendUnavailableError,
    CapabilityError,
    HostStartError,
)
from agentenv_tools.config import ToolExecutorConfig
from agentenv_tools.errors import ToolConfigError
from agentenv_tools.executor import ToolExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from agentenv_tools.base import Tool
    from agentenv_tools.registry import ToolRegistry

_ACQUIRE_S = 60.0


def executor_config(values: Mapping[str, Any]) -> ToolExecutorConfig:
    """The settings of an executor over a backend of this configuration, where nobody gives any."""
    return ToolExecutorConfig(acquire_timeout_s=values.get("acquire_timeout_s", _ACQUIRE_S))


@asynccontextmanager
async def opened(
    values: Mapping[str, Any],
    registry: ToolRegistry,
    timeout_s: float,
    config: ToolExecutorConfig,
    served_tools: Sequence[Tool[Any]] = (),
) -> AsyncIterator[ToolExecutor]:
    """A started backend with its executor; both are ended whatever happens.

    Raises `TaskUnsupportedError`, `SandboxBuildFailedError`, `EnvironmentStartTimeoutError`, or `ToolServerError` for a
    server of external tools that does not answer.
    """
    try:
        backend = parse_backend_config(values).build()
    except BackendConfigError as error:
        raise TaskUnsupportedError(str(error)) from error
    except BackendUnavailableError as error:
        raise SandboxBuildFailedError(str(error)) from error
    executor = None
    try:
        await _started(backend, timeout_s)
        executor = ToolExecutor(backend, registry, config, served_tools=served_tools)
        await _connected(executor)
        yield executor
    finally:
        if executor is not None:
            await finish(executor.close())
        await finish(backend.stop(purge=True))


async def _connected(executor: ToolExecutor) -> None:
    try:
        await executor.start()
    except (ToolConfigError, CapabilityError) as error:
        raise TaskUnsupportedError(str(error)) from error


async def _started(backend: Any, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await backend.start()
    except TimeoutError as error:
        raise EnvironmentStartTimeoutError(
            f"the sandbox was not there within build_timeout_sec = {timeout_s:g}"
        ) from error
    except BackendConfigError as error:
        raise TaskUnsupportedError(str(error)) from error
    except (BackendUnavailableError, HostStartError) as error:
        raise SandboxBuildFailedError(str(error)) from error
