"""Repositories on the driver's side: a bare cache shared by all, and what is made of a row from it.

Git runs without anybody's configuration, without hooks, and asks nobody for a password. All of this blocks: from
asynchronous code call it in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agentenv_environments.swe.rows import SweRow

GIT_TIMEOUT_S = 600.0
PROTECTED_NAMES = (
    *(
        "conftest.py",
        "pytest.ini",
        ".pytest.ini",
        "pytest.toml",
        ".pytest.toml",
        "tox.ini",
        "setup.cfg",
        "pyproject.toml",
    ),
    *("sitecustomize.py", "usercustomize.py", "*.pth", "*.dist-info", "*.egg-info", "*.egg-link"),
)
"""Names whose files decide how tests are found and run, wherever they lie: those of the base commit count."""
_OPTIONS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.auto=0",
    "advice.detachedHead=false",
)


class RepositoryError(Exception):
    """A repository cannot be had as a row wants it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a row is made of."""

    workspace: bytes
    """tar.gz of the tree at the base commit, as a repository of one commit."""
    hidden: bytes
    """tar.gz of spec.json, and of the files that no agent may change, as the tests want them."""


class RepositoryCache:
    """Bare repositories below a folder. Several processes may use one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self, row: SweRow, settings: dict[str, Any]) -> Prepared:
        """Fetch what is missing, and make a row's archives. `settings` become part of spec.json.

        Raises `RepositoryError`.
        """
        bare = self._bare(row.repo, row.base_commit)
        with tempfile.TemporaryDirectory(prefix="agentenv-swe-") as made:
            tree = Path(made) / "tree"
            tree.mkdir()
            _check_out(bare, row.base_commit, tree)
            workspace = _packed(tree)
            shutil.rmtree(tree / ".git")
            _change_tests(tree, row)
            return Prepared(workspace, _hidden(tree, row, settings))

    def _bare(self, repo: str, commit: str) -> Path:
        bare = self._folder / f"{hashlib.sha256(repo.encode()).hexdigest()[:24]}.git"
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(bare.with_suffix(".lock")):
            if not (bare / "HEAD").exists():
                _git(["init", "--quiet", "--bare", "--template=", str(bare)], self._folder)
            if not _has(bare, commit):
                _git(
                    ["fetch", "--quiet", "--no-tags", "--force", "--", repo, "+refs/*:refs/kept/*"],
                    bare,
                )
            if not _has(bare, commit):
                raise RepositoryError(
                    f"{repo} has no commit {commit} that a branch or tag leads to"
                )
        return bare


def _check_out(bare: Path, commit: str, tree: Path) -> None:
    """The files of a commit, as the only commit of a new repository: nothing else of the old one is in it."""
    index = {"GIT_INDEX_FILE": str(tree.parent / "index")}
    _git(["read-tree", commit], bare, environment=index)
    _git(
        ["--work-tree", str(tree), "checkout-index", "--all", "--force"],
        bare,
        environment=index,
    )
    _git(["init", "--quiet", "--template=", "--initial-branch=main", "."], tree)
    _git(["add", "--all", "--force", "."], tree)
    _git(
        ["commit", "--quiet", "--allow-empty", "--no-verify", "-m", "base"], tree, environment=_WHO
    )


_WHO = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (
        ("NAME", "base"),
        ("EMAIL", "base@localhost"),
        ("DATE", "2000-01-01T00:00:00Z"),
    )
}


def _change_tests(tree: Path, row: SweRow) -> None:
    if row.test_patch.strip():
        patch = row.test_patch if row.test_patch.endswith("\n") else f"{row.test_patch}\n"
        # Outside of any repository, `git apply` changes files only, and never through links or above the folder.
        _git(["apply", "--whitespace=nowarn", "-"], tree, stdin=patch.encode())
    for name, content in row.test_files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(tree.resolve()):
            raise RepositoryError(f"{row.instance_id}: {name} leads out of the repository")
        path.unlink(missing_ok=True)
        path.write_text(content, encoding="utf-8")


def _hidden(tree: Path, row: SweRow, settings: dict[str, Any]) -> bytes:
    protected = sorted({_protected(file) for file in _test_files(row)})
    spec = {
        "nodes": row.nodes,
        "protected": protected,
        "protected_names": PROTECTED_NAMES,
        **settings,
    }
    made = io.BytesIO()
    with tarfile.open(
        fileobj=made, mode="w:gz", compresslevel=6, format=tarfile.PAX_FORMAT
    ) as archive:
        add_bytes(archive, "spec.json", json.dumps(spec).encode())
        for path in sorted(tree.rglob("*")):
            name = path.relative_to(tree)
            is_file = path.is_symlink() or path.is_file()
            if is_file and _is_protected(name, protected):
                archive.add(path, f"files/{name}", recursive=False, filter=_plain)
    return made.getvalue()


def _test_files(row: SweRow) -> set[str]:
    patched = {
        line[6:].split("\t")[0].strip()
        for line in row.test_patch.splitlines()
        if line.startswith(("+++ b/", "--- a/"))
    }
    return {node.split("::")[0] for node in row.nodes} | patched | set(row.test_files)


def _protected(file: str) -> str:
    """The nearest folder of tests above a file, else the file alone: helpers beside tests are tests too."""
    folders = list(PurePosixPath(file).parents)[:-1]
    return str(next((folder for folder in folders if folder.name in ("test", "tests")), file))


def _is_protected(name: Path, protected: Sequence[str]) -> bool:
    below = any(name.is_relative_to(one) for one in protected)
    return below or any(
        PurePosixPath(part).match(pattern) for part in name.parts for pattern in PROTECTED_NAMES
    )


def _packed(tree: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(
        fileobj=made, mode="w:gz", compresslevel=6, format=tarfile.PAX_FORMAT
    ) as archive:
        archive.add(tree, ".", filter=_plain)
    return made.getvalue()


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's file, of no time."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 946_684_800
    return entry


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file of that content into an archive."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(_plain(entry), io.BytesIO(content))


def _has(bare: Path, commit: str) -> bool:
    try:
        _git(["cat-file", "-e", f"{commit}^{{commit}}"], bare)
    except RepositoryError:
        return False
    return True


def _git(
    arguments: Sequence[str],
    folder: Path,
    *,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> None:
    options = [part for option in _OPTIONS for part in ("-c", option)]
    clean = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "file:http:https:ssh",
        "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent),
    }
    try:
        done = subprocess.run(  # noqa: S603 - no shell; what a row says never comes where an option could
            ["git", *options, *arguments],  # noqa: S607 - the driver's own
            cwd=folder,
            input=stdin,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            env=clean | dict(environment or {}),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RepositoryError(f"git {arguments[0]}: {error}") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise RepositoryError(f"git {arguments[0]} ended with {done.returncode}: {said}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
