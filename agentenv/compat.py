"""The one place where the predecessor's flat backend names become a nested backend config.

A flat name counts when the caller gave it. Where the nested config sets the same thing to something else, a flat value
other than the documented default is a contradiction and refused; the default says nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

from agentenv._modal_names import add_surroundings, modal_values
from agentenv_backends.config import BackendConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

# flat name -> (name in every pooled backend's config, documented default)
_POOL_NAMES: dict[str, tuple[str, Any]] = {
    "slots_per_container": ("slots", 10),
    "min_containers": ("min_hosts", 1),
    "max_containers": ("max_hosts", 10),
    "acquire_timeout_s": ("acquire_timeout_s", 30.0),
    "allow_network": ("allow_network", True),
}
_DOCKER_NAMES: dict[str, tuple[str, Any]] = {
    "sandbox_image": ("image", "atropos-sandbox:local"),
}
_NOMAD_NAMES: dict[str, tuple[str, Any]] = {
    **_DOCKER_NAMES,
    "nomad_address": ("address", "http://localhost:4646"),
    "sandbox_job_id": ("job_id", "atropos-sandbox-agent-env"),
    "purge_job_on_start": ("purge_job_on_start", False),
    "purge_job_on_shutdown": ("purge_job_on_shutdown", True),
    "driver": ("driver", "docker"),
    "singularity_image": ("singularity_image", None),
}
_NAMES_OF = {"docker": _DOCKER_NAMES, "nomad": _NOMAD_NAMES}
_ADAPTER: TypeAdapter[BackendConfig] = TypeAdapter(BackendConfig)


def backend_from_flat_names(values: Mapping[str, Any], nested: Any = None) -> BackendConfig:
    """The backend config that flat `values` and the `nested` config (a dict, a config, or None) say together.

    `allow_network: true` only permits: it never opens a network that the backend's own config keeps shut.
    Raises `ValueError` when the two contradict each other, or pydantic's `ValidationError` for a bad nested config.
    """
    fewest, most = values.get("min_containers", 1), values.get("max_containers", 10)
    if isinstance(fewest, int) and isinstance(most, int) and fewest > most:
        raise ValueError(f"min_containers={fewest} is over max_containers={most}")
    chosen = _as_dict(nested)
    chosen.setdefault("type", values.get("tool_pool_mode", "local"))
    mode = values.get("tool_pool_mode", "local")
    if mode not in ("local", chosen["type"]):
        raise ValueError(
            f"tool_pool_mode={mode!r} contradicts backend.type={chosen['type']!r}: give one of them"
        )
    if chosen["type"] == "modal":
        _merge_modal_names(chosen, values)
    else:
        _merge_names(chosen, values)
    for flat in ("require_sandbox", "require_stateful_sandbox"):
        if values.get(flat) in (True, "true") and chosen.get("isolation") == "none":
            raise ValueError(f"{flat}=True contradicts backend.isolation='none': drop one of them")
    return _ADAPTER.validate_python(chosen)


def _merge_names(chosen: dict[str, Any], values: Mapping[str, Any]) -> None:
    names = _POOL_NAMES | _NAMES_OF.get(chosen["type"], {})
    for flat, (name, default) in names.items():
        if flat in values and not (flat == "allow_network" and values[flat] in (True, "true")):
            _merge(chosen, flat, name, values[flat], default)


def _merge_modal_names(chosen: dict[str, Any], values: Mapping[str, Any]) -> None:
    """The predecessor had names of their own for everything in Modal but the network."""
    if values.get("allow_network") in (False, "false"):
        _merge(chosen, "allow_network", "allow_network", False, True)
    for flat, name, value, default in modal_values(values):
        if name == "env_vars" and value and "env_vars" in chosen:
            raise ValueError("modal_env_vars and backend.env_vars: give one of them")
        _merge(chosen, flat, name, value, default)
    add_surroundings(chosen, os.environ)


def _as_dict(nested: Any) -> dict[str, Any]:
    if isinstance(nested, BaseModel):
        return nested.model_dump(exclude_unset=True) | {"type": getattr(nested, "type", "local")}
    return dict(nested or {})


def _merge(chosen: dict[str, Any], flat: str, name: str, value: Any, default: Any) -> None:
    if name not in chosen:
        chosen[name] = value
    elif chosen[name] != value and value != default:
        raise ValueError(
            f"{flat}={value!r} contradicts backend.{name}={chosen[name]!r}: give one of them"
        )
