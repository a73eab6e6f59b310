"""How a chat model is spoken to. Data."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator


class ChatModelSettings(BaseModel):
    """Address, key, and how patient to be. Keys are masked wherever this is printed or dumped."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base_url: str | None = None
    """None: the provider's own, or what its variable of the environment says."""
    api_key: SecretStr | None = None
    """None: from the environment or `.env`, see `keys`."""
    region: str | None = None
    """Bedrock only; None: `AWS_REGION`, or `AWS_DEFAULT_REGION`."""
    native_tools: bool = True
    """Tell the server of the tools, and take its calls. False: tools and calls are put into the text."""
    takes_images: bool = True
    """Whether the model sees images of tool results."""
    reasoning_effort: str | None = None
    """`minimal`, `low`, `medium`, `high` or `xhigh`, for models that think; None: the provider's default."""
    timeout_s: float = Field(default=900.0, gt=0, allow_inf_nan=False)
    """For one reply with everything: waiting for a permit, attempts, pauses between them."""
    attempt_timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    max_attempts: int = Field(default=6, ge=1)
    retry_base_delay_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Before the first retry; doubled for each further one, with jitter."""
    retry_max_delay_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    max_retry_after_s: float = Field(default=120.0, ge=0, allow_inf_nan=False)
    """The longest wait that a provider may ask for; what asks for more is not waited for at all."""
    max_concurrency: int = Field(default=32, ge=1)
    """Requests at once. Raised, never lowered, by `raise_concurrency`."""

    @model_validator(mode="after")
    def _check_deadlines(self) -> Self:
        if self.attempt_timeout_s > self.timeout_s:
            raise ValueError(
                f"attempt_timeout_s={self.attempt_timeout_s:g} is over timeout_s={self.timeout_s:g}"
            )
        return self
