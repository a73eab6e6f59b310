"""What is kept of a sandbox when the agent is done: fetched, listed in a manifest, and put into the verifier's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from agentenv.tasks.archives import CleanArchive, cleaned
from agentenv.tasks.models import Artifact
from agentenv.tasks.rules import MAIN_SERVICE
from agentenv.tasks.sandbox import DownloadTooLargeError, SandboxCommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.tasks.sandbox import TaskSandbox
    from agentenv.tasks.under_way import TaskRun

CONVENTION = "/logs/artifacts"
"""Always collected, before anything else."""
MAX_ARTIFACT_BYTES = 48 << 20
MAX_ARTIFACTS_BYTES = 256 << 20
MANIFEST = "artifacts/manifest.json"


@dataclass(frozen=True, slots=True)
class Collected:
    """One artifact that was fetched."""

    path: str
    """Where it was, and where a separate verifier gets it."""
    is_folder: bool
    archive: CleanArchive


class Collection:
    """The artifacts of one step."""

    def __init__(self, run: TaskRun, workdir: str) -> None:
        self._run = run
        self._workdir = PurePosixPath(workdir)
        self._claims: list[PurePosixPath] = []
        self._size = 0
        self.manifest: list[dict[str, Any]] = []
        self.collected: list[Collected] = []

    async def collect(self, artifacts: Sequence[Artifact]) -> None:
        """Fetch every one into artifacts/ and write the manifest. What fails is in it, and raises nothing.

        Raises `InfrastructureError` when the sandbox itself is gone, or `OSError` when the folder cannot be written.
        """
        for artifact in (Artifact(source=CONVENTION), *artifacts):
            self.manifest.append(await self._entry(artifact))
        await self._run.folder.write_json(MANIFEST, self.manifest)

    async def _entry(self, artifact: Artifact) -> dict[str, Any]:
        path = self._workdir / artifact.source
        destination = PurePosixPath(artifact.destination or str(path).lstrip("/"))
        kind, status = "file", "failed"
        if artifact.service not in (None, MAIN_SERVICE):
            self._warn(artifact, f"nothing is fetched from service {artifact.service}")
        elif any(_overlap(destination, claim) for claim in self._claims):
            status = "skipped"
        else:
            self._claims.append(destination)
            kind, status = await self._fetch(artifact, str(path), destination)
        entry = {
            "source": artifact.source,
            "destination": str(destination),
            "type": kind,
            "status": status,
        }
        if artifact.service is not None:
            entry["service"] = artifact.service
        return {**entry, "exclude": list(artifact.exclude)} if artifact.exclude else entry

    async def _fetch(
        self, artifact: Artifact, path: str, destination: PurePosixPath
    ) -> tuple[str, str]:
        sandbox = self._run.sandbox
        kind = await sandbox.kind_of(path)
        if not kind:
            if artifact.source != CONVENTION:
                self._warn(artifact, "there is no such file or folder")
            return "file", "empty" if artifact.source == CONVENTION else "failed"
        try:
            raw = await sandbox.download(path, self._room(), artifact.exclude)
        except (SandboxCommandError, DownloadTooLargeError) as error:
            self._warn(artifact, str(error))
            return kind, "failed"
        archive = await asyncio.to_thread(cleaned, raw)
        self._size += len(archive.content)
        for reason in archive.left_out[:20]:
            self._warn(artifact, f"left out {reason}")
        is_folder = kind == "directory"
        self.collected.append(Collected(path, is_folder, archive))
        if not archive.files:
            return kind, "empty"
        await self._write(archive, is_folder, PurePosixPath(path).name, destination)
        return kind, "ok"

    async def _write(
        self, archive: CleanArchive, is_folder: bool, name: str, destination: PurePosixPath
    ) -> None:
        folder = self._run.folder
        if is_folder:
            problems = await folder.extract(archive.content, f"artifacts/{destination}")
        else:
            problems = await folder.extract_file(archive.content, name, f"artifacts/{destination}")
        self._run.warnings.extend(f"artifact {destination}: {problem}" for problem in problems)

    def _room(self) -> int:
        return min(MAX_ARTIFACT_BYTES, MAX_ARTIFACTS_BYTES - self._size)

    def _warn(self, artifact: Artifact, what: str) -> None:
        self._run.warnings.append(f"artifact {artifact.source}: {what}")


async def put_back(collected: Sequence[Collected], sandbox: TaskSandbox) -> None:
    """Put artifacts at the places they came from, in another sandbox. Raises `InfrastructureError`."""
    for each in collected:
        if not each.archive.files:
            continue
        path = PurePosixPath(each.path)
        await sandbox.upload_archive(
            each.archive.content, str(path if each.is_folder else path.parent)
        )


def _overlap(one: PurePosixPath, other: PurePosixPath) -> bool:
    return one == other or one in other.parents or other in one.parents
