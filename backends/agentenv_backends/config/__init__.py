"""Which backend, and how: small configs told apart by a literal `type`. Unknown keys are refused.

    parse_backend_config({"type": "local", "slots": 8}).build()

pool.py     what all of them have in common
services.py services beside a host
local.py, docker.py, ...    one each

A new backend is one module here, added to `AnyBackendConfig`, `_OFFERED` and `BackendConfig`; its `build`
imports what it needs, so nobody pays for a backend that is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag, ValidationError

from agentenv_backends.config.docker import DockerConfig
from agentenv_backends.config.local import LocalConfig
from agentenv_backends.config.modal import ModalConfig
from agentenv_backends.config.nomad import NomadConfig, NomadConstraint
from agentenv_backends.config.pool import PoolConfig
from agentenv_backends.config.surroundings import SlotSurroundings
from agentenv_backends.errors import BackendConfigError

__all__ = [
    "AnyBackendConfig",
    "BackendConfig",
    "DockerConfig",
    "LocalConfig",
    "ModalConfig",
    "NomadConfig",
    "NomadConstraint",
    "PoolConfig",
    "SlotSurroundings",
    "parse_backend_config",
]

AnyBackendConfig = LocalConfig | DockerConfig | NomadConfig | ModalConfig

_OFFERED: dict[str, type[AnyBackendConfig]] = {
    "local": LocalConfig,
    "docker": DockerConfig,
    "nomad": NomadConfig,
    "modal": ModalConfig,
}


def _refuse_unknown_type(value: Any) -> Any:
    wanted = value.get("type", "local") if isinstance(value, Mapping) else None
    if wanted is not None and wanted not in _OFFERED:
        raise BackendConfigError(
            f"backend type {wanted!r} is not offered; there is: {', '.join(sorted(_OFFERED))}"
        )
    return value


def _type_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("type", "local"))
    return str(getattr(value, "type", "local"))


BackendConfig = Annotated[
    Annotated[LocalConfig, Tag("local")]
    | Annotated[DockerConfig, Tag("docker")]
    | Annotated[NomadConfig, Tag("nomad")]
    | Annotated[ModalConfig, Tag("modal")],
    Discriminator(_type_of),
    BeforeValidator(_refuse_unknown_type),
]
"""Any backend's config; a mapping without `type` is a local one."""


def parse_backend_config(values: Mapping[str, Any]) -> AnyBackendConfig:
    """The config that `values` describe. Raises `BackendConfigError` naming each key and value
    that is wrong.
    """
    _refuse_unknown_type(values)
    try:
        return _OFFERED[values.get("type", "local")].model_validate(dict(values))
    except ValidationError as error:
        raise BackendConfigError("; ".join(_sentence(fault) for fault in error.errors())) from None


def _sentence(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if not key:
        return f"backend: {fault['msg']}"
    return f"backend.{key} = {fault['input']!r}: {fault['msg']}"
