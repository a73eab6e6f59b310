"""The workspace of an agent that is done, kept as files, and put back into another sandbox to be judged again.

    workspace/about.json           what was kept, or why nothing was
    workspace/workspace.tar.gz     the working directory
    workspace/logs-agent.tar       a folder of logs, one file for each

Kept are files, folders and links of the working directory and of the logs, with their modes and times. Not kept:
processes, terminals, devices and sockets, owners (all becomes the sandbox user's), and whatever lies elsewhere, as
packages that an agent installed. What is kept was packed when the agent's processes were dead and before anything
hidden arrived.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentenv.errors import AgentEnvError
from agentenv.tasks.sandbox import DownloadTooLargeError, SandboxCommandError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agentenv.tasks.folder import RunFolder
    from agentenv.tasks.sandbox import TaskSandbox

WORKSPACE = "workspace"
_ABOUT, _FILES = "about.json", "workspace.tar.gz"
_MAX_META_BYTES = 1 << 20


class WorkspaceNotKeptError(AgentEnvError):
    """There is no workspace to be put back. Says why."""


@dataclass(frozen=True, slots=True)
class KeptWorkspace:
    """A workspace that was kept."""

    path: Path
    folders: tuple[str, ...]
    """Of logs."""
    meta: dict[str, Any] | None
    """What the set-up had returned; None: it could not be written down."""
    used: bool
    """False: nothing was ever done in a sandbox, so a new one is the same."""


async def keep_workspace(
    sandbox: TaskSandbox,
    folder: RunFolder,
    *,
    max_bytes: int,
    logs: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
    refusal: str | None = None,
) -> None:
    """Pack a sandbox's working directory and some folders of `logs` into workspace/ of `folder`, at most so many bytes.

    `refusal` is why it would be of no use. What does not fit, or cannot be packed, is written down and raises nothing.
    Raises `InfrastructureError` when the sandbox itself is gone, `OSError` when the folder cannot be written.
    """
    packed: dict[str, bytes] = {}
    used = sandbox.has_slot
    if refusal is None and used:
        try:
            packed = await _packed(sandbox, logs, max_bytes)
        except DownloadTooLargeError:
            refusal = f"its workspace takes more than the {max_bytes >> 20} MiB that are kept"
        except SandboxCommandError as error:
            refusal = f"its workspace could not be packed: {error}"
    if refusal is not None:
        packed = {}
    for name, content in packed.items():
        await folder.write_bytes(f"{WORKSPACE}/{name}", content)
    about = {"reason": refusal, "used": used, "logs": list(logs) if packed else []}
    await folder.write_json(f"{WORKSPACE}/{_ABOUT}", {**about, "meta": _as_json(meta)})


async def _packed(sandbox: TaskSandbox, logs: Sequence[str], max_bytes: int) -> dict[str, bytes]:
    packed = {_FILES: await sandbox.archive(max_bytes)}
    for folder in logs:
        left = max_bytes - sum(map(len, packed.values()))
        packed[_name(folder)] = await sandbox.download(folder, left)
    return packed


def _as_json(meta: Mapping[str, Any] | None) -> Any:
    """A mapping that JSON gives back as it is; else None."""
    if meta is None:
        return None
    try:
        text = json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return json.loads(text) if len(text) <= _MAX_META_BYTES and json.loads(text) == meta else None


def kept_workspace(folder: Path | None) -> KeptWorkspace:
    """What `keep_workspace` left in a folder. Blocking. Raises `WorkspaceNotKeptError`."""
    path = None if folder is None else folder / WORKSPACE
    if path is None or not (path / _ABOUT).is_file():
        raise WorkspaceNotKeptError("its workspace was not kept (`keep_workspaces`)")
    try:
        about = json.loads((path / _ABOUT).read_text())
        if about["reason"] is not None:
            raise WorkspaceNotKeptError(about["reason"])
        return KeptWorkspace(path, tuple(about["logs"]), about["meta"], about["used"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkspaceNotKeptError(f"its workspace cannot be read: {error}") from error


async def put_workspace_back(kept: KeptWorkspace, sandbox: TaskSandbox) -> None:
    """Have a sandbox's working directory and folders of logs hold what was kept, and nothing else.

    Raises `InfrastructureError`, or `OSError` when what was kept cannot be read.
    """
    if not kept.used:
        return
    await sandbox.replace_files(await asyncio.to_thread((kept.path / _FILES).read_bytes))
    for folder in kept.folders:
        await sandbox.empty(folder, mode="0777")
        archive = await asyncio.to_thread((kept.path / _name(folder)).read_bytes)
        await sandbox.upload_archive(archive, folder)


def _name(folder: str) -> str:
    return folder.strip("/").replace("/", "-") + ".tar"
