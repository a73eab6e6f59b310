"""A small file system, in memory, whose size a test changes."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """Mounted at `path`."""

    path: Path

    def resize(self, size: str) -> None:
        """To a size as `mount` takes it: `8m`."""
        subprocess.run(_mount(self.path, f"remount,size={size}"), check=True)


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[SmallDisk]:
    """One while the context is open; the test is skipped where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    path.mkdir()
    done = subprocess.run(_mount(path, f"size={size}"), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(("umount", "--lazy", str(path)), check=True)


def _mount(path: Path, options: str) -> tuple[str, ...]:
    return ("mount", "-t", "tmpfs", "-o", options, "agentenv-test", str(path))
