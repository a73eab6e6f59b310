"""What the server knows: apps, images, secrets, sandboxes."""

import base64
import json
import secrets
import string
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.emulators.modal.building import Image
from tests.emulators.modal.sandbox import Sandbox
from tests.emulators.modal.sandbox import Status as Result

MISSING_IMAGE = "does-not-exist"
"""An image whose name has this cannot be pulled."""
WITHOUT_PYTHON = "without-python"
_FILE = "state.json"
_TOKEN_LIFE_S = 1200
_ALPHABET = string.digits + string.ascii_letters
_KNOWN_GPUS = frozenset(
    {"T4", "L4", "A10G", "A10", "A100", "A100-40GB", "A100-80GB", "L40S", "H100", "H200", "B200"}
)
_MOST_MILLI_CPU, _MOST_MEMORY_MB = 64_000, 344_064
_LONGEST_LIFE_S = 86_400


@dataclass
class State:
    folder: Path
    url: str = ""
    apps: dict[str, str] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    named_secrets: dict[str, str] = field(default_factory=dict)
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Uploaded files by their SHA-256."""
    mounts: dict[str, dict[str, str]] = field(default_factory=dict)
    """SHA-256 of the files of a mount, by their paths."""

    def sandbox(self, sandbox_id: str) -> Sandbox:
        found = self.sandboxes.get(sandbox_id)
        if found is None:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox with ID {sandbox_id} not found")
        return found

    def named(self, app_id: str, name: str, *, also_ended: bool = False) -> Sandbox | None:
        return next(
            (
                sandbox
                for sandbox in reversed(self.sandboxes.values())
                if (sandbox.app_id, sandbox.definition.name) == (app_id, name)
                and (also_ended or sandbox.result is None)
            ),
            None,
        )

    def task(self, task_id: str) -> Sandbox:
        """The sandbox of a task that runs."""
        for sandbox in self.sandboxes.values():
            if sandbox.task_id == task_id and sandbox.result is None:
                return sandbox
        raise GRPCError(Status.NOT_FOUND, f"Task {task_id} not found")

    def ended_task(self, task_id: str) -> Sandbox:
        """The sandbox of a task, whether or not it runs."""
        for sandbox in self.sandboxes.values():
            if sandbox.task_id == task_id:
                return sandbox
        raise GRPCError(Status.NOT_FOUND, f"Task {task_id} not found")

    def environment(self, sources: Any) -> dict[str, str]:
        """What secrets, by id or by value, put into the environment of commands."""
        merged: dict[str, str] = {}
        for source in sources:
            if source.WhichOneof("source") == "secret_id":
                merged |= self.secret(source.secret_id)
            else:
                merged |= dict(source.env.contents)
        return merged

    def secret(self, secret_id: str) -> dict[str, str]:
        if secret_id not in self.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret {secret_id} not found")
        return self.secrets[secret_id]

    async def create(
        self,
        app_id: str,
        definition: api_pb2.Sandbox,
        tags: Any,
        environment: dict[str, str],
        *,
        v1: bool,
    ) -> Sandbox:
        if app_id not in self.apps.values():
            raise GRPCError(Status.NOT_FOUND, f"App {app_id} not found")
        if definition.image_id not in self.images:
            raise GRPCError(Status.NOT_FOUND, f"Image {definition.image_id} not found")
        _check(definition)
        if definition.name and self.named(app_id, definition.name):
            raise GRPCError(Status.ALREADY_EXISTS, f"Sandbox {definition.name} already exists")
        image = self.images[definition.image_id]
        sandbox_id = new_id("sb", 22 if v1 else 26)
        sandbox = Sandbox(
            sandbox_id,
            new_id("ta", 22) if v1 else new_id("ta", 21) + "V",
            app_id,
            definition,
            {tag.tag_name: tag.tag_value for tag in tags},
            environment,
            self.folder / sandbox_id,
            without_python=WITHOUT_PYTHON in image.description,
            image_workdir=image.workdir,
        )
        # At once, so that of two creates with the same name one fails.
        self.sandboxes[sandbox_id] = sandbox
        await sandbox.begin(image.contents, image.environment)
        return sandbox

    def save(self) -> None:
        """Keep what outlives the server: all but sandboxes."""
        kept = {
            "apps": self.apps,
            "images": {
                image_id: [
                    image.description,
                    str(image.contents or ""),
                    image.workdir,
                    image.environment,
                ]
                for image_id, image in self.images.items()
            },
            "secrets": self.secrets,
            "named_secrets": self.named_secrets,
        }
        (self.folder / _FILE).write_text(json.dumps(kept))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """With what an earlier server in this folder kept."""
        if not (folder / _FILE).exists():
            return cls(folder)
        kept = json.loads((folder / _FILE).read_text())
        images = {
            image_id: Image(description, Path(contents) if contents else None, workdir, environment)
            for image_id, (description, contents, workdir, environment) in kept.pop(
                "images"
            ).items()
        }
        return cls(folder, images=images, **kept)

    async def close(self) -> None:
        for sandbox in self.sandboxes.values():
            sandbox.end(Result.GENERIC_STATUS_TERMINATED)
        for sandbox in self.sandboxes.values():
            await sandbox.gone()


def _check(definition: api_pb2.Sandbox) -> None:
    resources = definition.resources
    gpu = resources.gpu_config.gpu_type
    wrong = {
        f"GPU type {gpu} is not offered": gpu and gpu.upper() not in _KNOWN_GPUS,
        f"{resources.milli_cpu} milli CPU are more than {_MOST_MILLI_CPU}": resources.milli_cpu
        > _MOST_MILLI_CPU,
        f"{resources.memory_mb} MiB of memory are more than {_MOST_MEMORY_MB}": resources.memory_mb
        > _MOST_MEMORY_MB,
        f"timeout must be at most {_LONGEST_LIFE_S} seconds": definition.timeout_secs
        > _LONGEST_LIFE_S,
    }
    for sentence, is_so in wrong.items():
        if is_so:
            raise GRPCError(Status.INVALID_ARGUMENT, sentence)


def new_id(prefix: str, length: int) -> str:
    return f"{prefix}-{''.join(secrets.choice(_ALPHABET) for _ in range(length))}"


def new_token(name: str) -> str:
    """A token of the usual shape, which nobody signed."""
    parts = {"alg": "none"}, {"exp": int(time.time() + _TOKEN_LIFE_S), "sub": name}, {"sig": 1}
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts)
    return ".".join(part.rstrip(b"=").decode() for part in encoded)
