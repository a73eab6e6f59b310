"""A Python for images that have none: the driver's own interpreter, brought along.

It comes with everything that it uses of its machine: the dynamic loader, the shared libraries, and of the standard
library what the sandbox server imports, compiled. Started through that loader it uses nothing of the image, so that the
image's C library, if any, does not matter; only the kind of processor does.

    /.agentenv-python/ld.so --library-path /.agentenv-python/lib /.agentenv-python/bin/python3 -I -S ...

The engine keeps the image with the tree added to it as `agentenv-python:<digest>`, for all drivers: the digest is that
of the image and of the files that the tree is made of. Nothing of the tree changes once it is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import marshal
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, SourceFileLoader
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from agentenv_backends import sandboxd
from agentenv_backends.docker.workspaces import remove_least_used
from agentenv_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv_backends.config import DockerConfig
    from agentenv_backends.docker.engine import Engine

_log = logging.getLogger(__name__)

PLACE = "/.agentenv-python"
"""Where the tree lies in a container, for all to read."""
BROUGHT = (f"{PLACE}/ld.so", "--library-path", f"{PLACE}/lib", f"{PLACE}/bin/python3")
"""How its interpreter is started."""
REPOSITORY = "agentenv-python"
LABEL = "agentenv.python"
MOST_IMAGES = 32
"""Images with a Python added that an engine keeps; those not used for longest go first."""
_FORMAT = 1
_MOST_BYTES = 128 << 20
_EXAMINE_S = 60.0
_DOCKERFILE = ".agentenv.Dockerfile"
_FOLDER = "tree"
_IN_MEMORY = 8 << 20
_NOT_IN_CONTAINERS = frozenset(("gate.py", "packing.py"))
_IMPORT = re.compile(r"^ *(?:import|from) (\w[\w.]*)", re.MULTILINE)
"""Not by `ast`, which Python 3.11 cannot use in two threads at once."""
_WHAT_STARTS_IT = (
    "codecs", "encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.utf_8", "io", "os", "runpy", "site",
    "traceback",
)  # fmt: skip
"""What the interpreter imports by itself: to begin, to run a zip file, to tell an error."""
_MACHINES = {
    "x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "ppc64le": "ppc64le", "s390x": "s390x",
    "riscv64": "riscv64",
}  # fmt: skip
"""Kinds of processors, as the kernel and as engines call them."""
_INSTEAD = (
    "take an image with python3 (3.8 or newer), or add it in a Dockerfile (`RUN apt-get install -y python3`, "
    "`RUN apk add python3`) and set `dockerfile`"
)


_building: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""One at a time: backends that start together often want the same."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """The files of an interpreter, by where they go in the tree."""

    files: Mapping[str, str]
    """Those that are copied as they are."""
    sources: Mapping[str, tuple[str, str]]
    """Name and file of each module that is compiled."""

    def digest(self) -> str:
        """Of what they are, without reading them."""
        seen = hashlib.sha256(f"{_FORMAT} {sys.version}".encode())
        paths = {**self.files, **{place: path for place, (_, path) in self.sources.items()}}
        for place, path in sorted(paths.items()):
            status = Path(path).stat()
            seen.update(f"{place} {status.st_size} {status.st_mtime_ns}\n".encode())
        return seen.hexdigest()


async def bring_python(engine: Engine, config: DockerConfig, image: Mapping[str, Any]) -> str:
    """The id of an image like this one with this machine's Python added, which the engine has from now on.

    Raises `BackendUnavailableError` where that cannot work, with the way out, and `EngineError`.
    """
    _check(image)
    try:
        async with _building.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            parts = await asyncio.to_thread(_examine)
            digest = hashlib.sha256(f"{parts.digest()} {image['Id']}".encode()).hexdigest()
            name = f"{REPOSITORY}:{digest}"
            if await engine.find_image(name) is None:
                await _build(engine, config, parts, image["Id"], digest)
            else:
                await engine.tag_image(name, REPOSITORY, digest)  # the engine notes when
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise BackendUnavailableError(
            f"this machine's Python ({sys.executable}) cannot be brought along: {error}; {_INSTEAD}"
        ) from error
    found = await engine.find_image(name)
    if found is None:
        raise BackendUnavailableError(f"{engine.name} has lost image {name}, just made: try again")
    await remove_least_used(engine, LABEL, most=MOST_IMAGES, keep=name)
    return str(found["Id"])


def _check(image: Mapping[str, Any]) -> None:
    machine = platform.machine()
    ours, theirs = _MACHINES.get(machine, machine), image.get("Architecture") or ""
    if theirs and theirs != ours:
        raise BackendUnavailableError(
            f"the image is for {theirs} processors and this machine's Python for {ours}, so it cannot be brought "
            f"along: {_INSTEAD}"
        )
    triggers = (image.get("Config") or {}).get("OnBuild")
    if triggers:
        raise BackendUnavailableError(
            f"the image runs {triggers} when anything is built on it (ONBUILD), so no Python can be added to it: "
            f"{_INSTEAD}"
        )


# --- what it is made of --------------------------------------------------------------------------------


def _examine() -> _Parts:
    """Ask the interpreter. Raises `OSError`, `SubprocessError`, `ValueError` or `KeyError`."""
    program = Path(__file__).with_name("_python_parts.py")
    options = ("-I", "-S", "-X", "utf8", "-X", "frozen_modules=off")
    asked = [sys.executable, *options, str(program), *_WHAT_STARTS_IT, *_imports_of_the_server()]
    done = subprocess.run(  # noqa: S603
        asked, capture_output=True, check=False, timeout=_EXAMINE_S, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise ValueError(done.stderr.decode("utf-8", "replace").strip()[-500:])
    return _placed(json.loads(done.stdout))


def _placed(found: Mapping[str, Any]) -> _Parts:
    library = found["library"]
    files = {"bin/python3": found["executable"]}
    sources = {}
    for name, (path, is_package) in found["modules"].items():
        place = name.replace(".", "/") + ("/__init__" if is_package else "")
        if path.endswith(tuple(EXTENSION_SUFFIXES)):
            files[f"{library}/lib-dynload/{Path(path).name}"] = path
        elif path.endswith(".py"):
            sources[f"{library}/{place}.pyc"] = (name, path)
    extensions = set(files.values())
    for path in found["objects"]:
        name = Path(path).name
        if path not in extensions:
            files["ld.so" if name.startswith("ld") else f"lib/{name}"] = path
    if "ld.so" not in files:
        raise ValueError("it has no dynamic loader that could be brought with it")
    return _Parts(files, sources)


def _imports_of_the_server() -> list[str]:
    """Modules of the standard library that any of the server's own imports, wherever it does."""
    names: set[str] = set()
    for path in Path(sandboxd.__path__[0]).glob("*.py"):
        if path.name not in _NOT_IN_CONTAINERS:
            names.update(_IMPORT.findall(path.read_text(encoding="utf-8")))
    return sorted(name for name in names if name.partition(".")[0] in sys.stdlib_module_names)


# --- the image -----------------------------------------------------------------------------------------


async def _build(
    engine: Engine, config: DockerConfig, parts: _Parts, image_id: str, digest: str
) -> None:
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as context:
        lines = f"FROM {image_id}\nCOPY {_FOLDER} {PLACE}\nLABEL {LABEL}={digest}\n"
        size = await asyncio.to_thread(_pack, parts, lines, context)
        context.seek(0)
        _log.info(
            "this machine's Python %s (%d MB) is added to a copy of the image, kept as %s:%s",
            platform.python_version(), size >> 20, REPOSITORY, digest,
        )  # fmt: skip
        await engine.build(
            context,
            f"{REPOSITORY}:{digest}",
            _DOCKERFILE,
            {},
            pull=False,
            timeout_s=config.pull_timeout_s,
        )


def _pack(parts: _Parts, dockerfile: str, archive: IO[bytes]) -> int:
    """Write what the build is sent; its size. Raises `OSError` or `ValueError`."""
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, _DOCKERFILE, dockerfile.encode())
        for place, path in sorted(parts.files.items()):
            _add(tar, f"{_FOLDER}/{place}", Path(path).read_bytes())
        for place, (name, path) in sorted(parts.sources.items()):
            _add(tar, f"{_FOLDER}/{place}", _compiled(name, path))
    return archive.tell()


def _compiled(name: str, path: str) -> bytes:
    """A module as a file that is imported without its source."""
    code = SourceFileLoader(name, path).get_code(name)
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    if tar.offset + len(content) > _MOST_BYTES:
        raise ValueError(f"it takes over {_MOST_BYTES >> 20} MB")
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o755
    tar.addfile(member, io.BytesIO(content))
