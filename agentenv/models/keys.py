"""Where the providers' keys come from: the environment, then a `.env` file. They are never logged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from agentenv.errors import ConfigError
from agentenv.models.routing import Provider

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_NAMES: dict[Provider, tuple[str, ...]] = {
    Provider.OPENAI: ("OPENAI_API_KEY",),
    Provider.ANTHROPIC: ("ANTHROPIC_API_KEY",),
    Provider.GOOGLE: ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    Provider.BEDROCK: ("AWS_BEARER_TOKEN_BEDROCK",),
    Provider.COMPATIBLE: ("AGENTENV_MODEL_API_KEY",),
}
"""The variables that hold a provider's key, the first that is set counts. Bedrock also takes an access key, see
`aws_keys`. An OpenAI-compatible server has a variable of its own, so it never gets OpenAI's key."""

MAX_ENV_FILE_BYTES = 1_000_000


def load_environ(
    env_file: Path | str | None = ".env", environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment, and below it what `env_file` says. Raises `ConfigError` for a file that cannot be read."""
    known = dict(os.environ if environ is None else environ)
    path = Path(env_file) if env_file is not None else None
    if path is None or not path.is_file():
        return known
    from dotenv import dotenv_values  # noqa: PLC0415 - part of the models extra

    try:
        if path.stat().st_size > MAX_ENV_FILE_BYTES:
            raise ConfigError(
                f"{path} is larger than {MAX_ENV_FILE_BYTES:,} bytes: is it a .env file?"
            )
        said = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return {name: value for name, value in said.items() if value is not None} | known


def find_key(provider: Provider, environ: Mapping[str, str]) -> SecretStr | None:
    """A provider's key; None when no variable holds one. Raises `ConfigError` where it cannot do without."""
    names = KEY_NAMES[provider]
    found = next((environ[name] for name in names if environ.get(name)), None)
    if found is not None:
        return SecretStr(found)
    if provider is Provider.COMPATIBLE or (provider is Provider.BEDROCK and aws_keys(environ)):
        return None
    wanted = " or ".join(names)
    if provider is Provider.BEDROCK:
        wanted += ", or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    raise ConfigError(f"no key for {provider}: set {wanted}, in the environment or in .env")


def aws_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """Bedrock's access key, as its client takes it; empty when it is not complete."""
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        return {}
    keys = {"aws_access_key_id": key, "aws_secret_access_key": secret}
    token = environ.get("AWS_SESSION_TOKEN")
    return keys | ({"aws_session_token": token} if token else {})


def aws_region(environ: Mapping[str, str], region: str | None) -> str:
    """Bedrock's region. Raises `ConfigError` when nobody says it."""
    found = region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if not found:
        raise ConfigError("no region for Bedrock: set AWS_REGION")
    return found
