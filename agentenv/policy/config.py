"""Where the policy is served, as configuration. The names and defaults are those users of Atropos
know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

if TYPE_CHECKING:
    from collections.abc import Sequence

ServerType = Literal["openai", "vllm", "sglang", "transformers"]

DEFAULT_PORTS = (9004, 9005, 9006, 9007)
"""Where the servers of a bare `ServerBaseline` are looked for, on this machine."""


class ServerBaseline(BaseModel):
    """What does not depend on which server it is. Alone it means the servers on `DEFAULT_PORTS` of
    this machine.
    """

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )

    timeout: float = Field(default=1200.0, gt=0, allow_inf_nan=False)
    """Seconds for one completion, with everything: waiting for a permit, retries, backoff."""
    num_max_requests_at_once: int = Field(default=512, ge=1)
    """Training requests at once, per server. Raised to the group size, never lowered."""
    num_requests_for_eval: int = Field(default=64, ge=1)
    """Evaluation requests at once, per server, counted apart from training."""
    model_name: str = "default"
    """The model's name at the server; for `transformers` a directory or the name of a model."""
    rolling_buffer_length: int = 1000
    """Request times kept for statistics, per server and split; at least one."""
    server_type: ServerType = "openai"
    """`openai` is for evaluation only: it returns text without token ids."""
    tokenizer_name: str = "none"
    """`none` means `model_name`."""

    @field_validator("server_type", mode="before")
    @classmethod
    def _refuse_trl(cls, value: Any) -> Any:
        if value == "trl":
            raise ValueError(
                "server_type 'trl' is refused: its server returns no log-probabilities, so "
                "nothing it samples can be trained on; serve the model with vllm or sglang"
            )
        return value

    @property
    def tokenizer(self) -> str:
        """The tokenizer's name, with `none` resolved."""
        return self.model_name if self.tokenizer_name == "none" else self.tokenizer_name


class APIServerConfig(ServerBaseline):
    """One inference server. `api_key` is masked wherever the config is printed or dumped."""

    api_key: SecretStr = SecretStr("")
    base_url: str = ""
    """With or without `/v1`. Unused by `transformers`."""
    takes_images: bool = False
    """`openai` only: send images of tool results as `image_url` parts. False: the model reads what the
    results say of them."""
    n_kwarg_is_ignored: bool = False
    """Accepted and unused: one completion is asked for per request."""
    health_check: bool = True
    """Ask `health_path` now and then. False: a server that failed is tried again after
    `health_interval`."""

    api: Literal["completions", "generate", "legacy_generate"] = "completions"
    """vLLM only. `completions`: `/v1/completions`. `generate`: the token-in, token-out
    `/inference/v1/generate` (`vllm serve --enable-scale-out`). `legacy_generate`: the `/generate`
    of the server Atropos shipped."""
    request_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds for one attempt. None: `timeout`, so a request that is never answered is not tried
    again."""
    max_attempts: int = Field(default=8, ge=1)
    retry_base_delay: float = Field(default=0.25, ge=0, allow_inf_nan=False)
    """Seconds before the first retry, doubled for each further one, with jitter."""
    retry_max_delay: float = Field(default=20.0, ge=0, allow_inf_nan=False)
    max_retry_after: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    """The longest `Retry-After`, in seconds, that is honoured; a longer one counts as this."""
    max_outage: float = Field(default=120.0, ge=0, allow_inf_nan=False)
    """Seconds a request waits while no server answers at all."""
    startup_timeout: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    """Seconds `start` waits for the server to answer at all."""
    health_path: str = "/health"
    health_interval: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    health_timeout: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    send_seed: bool = True
    """Send `SamplingParams.seed`. SGLang heeds it in its deterministic mode only."""
    policy_version_header: str = "x-policy-version"
    """The reply's header that names the weights, for servers that have one."""

    dtype: str = "auto"
    """`transformers` only: a name of torch (`float32`, `bfloat16`), or `auto` for what the
    checkpoint says."""
    device: str = "cpu"
    """`transformers` only."""
    max_batch_size: int = Field(default=64, ge=1)
    """`transformers` only: rows in one forward pass."""
    torch_threads: int = Field(default=1, ge=1)
    """`transformers` only: threads of one operation."""

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if self.takes_images and self.server_type != "openai":
            raise ValueError(
                f"takes_images is for server_type openai; {self.server_type} is sent token ids, "
                "which are text"
            )
        return self

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if self.server_type == "transformers" or not self.base_url:
            return self
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"base_url {self.base_url!r} is no address of a server; write it as http://host:port/v1"
            )
        if parts.username is not None and self.api_key.get_secret_value():
            raise ValueError(
                "base_url holds a user and api_key is set: a request takes one of them"
            )
        return self

    @property
    def root_url(self) -> str:
        """`base_url` without `/v1`: where the engine's own routes are."""
        return self.base_url.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def attempt_timeout(self) -> float:
        """Seconds for one attempt."""
        return (
            self.timeout
            if self.request_timeout is None
            else min(self.request_timeout, self.timeout)
        )


def resolve_servers(
    configs: ServerBaseline | Sequence[APIServerConfig],
) -> list[APIServerConfig]:
    """The servers meant. One `APIServerConfig` is one server; a bare `ServerBaseline` is those of
    `DEFAULT_PORTS`.
    """
    if isinstance(configs, APIServerConfig):
        return [configs]
    if isinstance(configs, ServerBaseline):
        shared = configs.model_dump()
        return [
            APIServerConfig(**shared, base_url=f"http://localhost:{port}/v1")
            for port in DEFAULT_PORTS
        ]
    return list(configs)
