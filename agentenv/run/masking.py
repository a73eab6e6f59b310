"""Secrets, taken out of whatever is printed or written.

By name: a string below a key that reads like a secret (`api_key`, `tool_server_token`,
`AWS_SECRET_ACCESS_KEY`) is masked, whole subtrees included. By shape, in every other string:
`NAME=value` with such a name, and the user part of a URL. Numbers are kept (`agent_max_tokens` is
none), and so is `tokenizer_name`: names are read word by word.

Not covered: a secret under a name that does not say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr

MASK = "***"

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_STEMS = (
    r"(?:keys?|secrets?|tokens?|passwords?|passwd|passphrase|credentials?|auth|authori[sz]ation)"
)
_SECRET_NAME = re.compile(rf"{_STEMS}(?![a-z])", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    r"(?P<name>[A-Za-z_][\w.-]{0,100})(?P<sign>\s?=\s?)(?P<value>[^\s;&,'\"]+)"
)
_URL_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]{1,20}://)[^/\s@]+@", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether a value of this name is to be masked."""
    return _SECRET_NAME.search(_CAMEL.sub("_", name)) is not None


def mask_secrets(value: Any) -> Any:
    """A copy of `value` with secrets replaced by `***`: models and mappings become dicts, tuples
    lists.

    Empty strings stay: they show that no secret was given.
    """
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields} | (
            value.model_extra or {}
        )
    if isinstance(value, Mapping):
        return {key: _mask_entry(str(key), entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [mask_secrets(entry) for entry in value]
    if isinstance(value, SecretStr | SecretBytes):
        return _mask_all(value)
    return _mask_text(value) if isinstance(value, str) else value


def _mask_entry(name: str, value: Any) -> Any:
    return _mask_all(value) if is_secret_name(name) else mask_secrets(value)


def _mask_all(value: Any) -> Any:
    if isinstance(value, SecretStr | SecretBytes):
        value = value.get_secret_value()
    if isinstance(value, str | bytes):
        return MASK if value else ""
    if isinstance(value, Mapping):
        return {key: _mask_all(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_mask_all(entry) for entry in value]
    return value


def _mask_text(text: str) -> str:
    if "://" in text:
        text = _URL_USER.sub(rf"\g<scheme>{MASK}@", text)
    return _ASSIGNMENT.sub(_mask_assignment, text) if "=" in text else text


def _mask_assignment(match: re.Match[str]) -> str:
    if not is_secret_name(match["name"]):
        return match[0]
    return f"{match['name']}{match['sign']}{MASK}"
