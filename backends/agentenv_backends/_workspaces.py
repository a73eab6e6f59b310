"""Which of an image's folders can be a slot's workspace."""

from __future__ import annotations

import os.path

from agentenv_backends.errors import BackendUnavailableError

DEFAULT_WORKSPACE = "/workspace"
_NO_WORKSPACES = frozenset(
    ("bin", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "tmp", "usr")
)


def workspace_of(working_dir: str) -> str:
    """The workspace of containers whose image works in `working_dir`: that folder, or the default one for `/`.

    Raises `BackendUnavailableError` for a folder of the system.
    """
    path = os.path.normpath(working_dir)
    if path.lstrip("/") == "":
        return DEFAULT_WORKSPACE
    if path.split("/")[1] in _NO_WORKSPACES:
        raise BackendUnavailableError(
            f"the image's working directory {path} belongs to the system and cannot be a workspace: say which folder "
            "is to be one with `workspace`, or set WORKDIR in its Dockerfile"
        )
    return path
