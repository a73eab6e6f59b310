"""What slots find beside their workspace."""

from __future__ import annotations

import os.path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator


class SlotSurroundings(BaseModel):
    """What commands find beside their workspace, where a backend can give it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    folders: tuple[str, ...] = ()
    """Absolute paths that every slot has to itself: empty at first, writable, `tmp_mb` each."""

    variables: dict[str, SecretStr] = Field(default={})
    """Environment variables of every command."""

    @field_validator("folders")
    @classmethod
    def _check_folders(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        for folder in folders:
            if not folder.startswith("/") or os.path.normpath(folder) != folder or folder == "/":
                raise ValueError(f"{folder!r} is no plain absolute path")
        return folders

    @field_validator("variables")
    @classmethod
    def _check_variables(cls, variables: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in variables.items():
            if not name or "=" in name or "\0" in name + value.get_secret_value():
                raise ValueError(f"{name!r} cannot be an environment variable")
        return variables

    @property
    def plain_variables(self) -> dict[str, str]:
        """The variables with their values, for a host's settings and nothing else."""
        return {name: value.get_secret_value() for name, value in self.variables.items()}
