"""Things of the driver's that a slot must not reach, and how `_probe.py` would know them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SENSITIVE = ("/var/run/docker.sock", "/run/docker.sock", "/etc/shadow")
"""Never readable in a slot, whoever owns the file system it sees."""
OF_THIS_MACHINE = ("/root", "/home")
"""Not to be seen where a slot has its files from the driver's machine."""


@contextlib.contextmanager
def bait(*further_paths: str) -> Iterator[dict[str, Any]]:
    """Put them out for the time of a block; yields what the probe's part `facts` is to be asked."""
    secret, name = secrets.token_hex(16), f"agentenv-bait-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{name}")
        abstract.listen()
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix=f"{name}-"))
        os.environ["AGENTENV_BAIT_SECRET"] = secret
        stack.callback(os.environ.pop, "AGENTENV_BAIT_SECRET")
        yield {
            "secret": secret,
            "neighbour": f"{name}-neighbour",
            "abstract": name,
            "port": port.getsockname()[1],
            "paths": [file.name, _ssh_folder(), *SENSITIVE, *further_paths],
            "driver": _of_this_process("cmdline"),
            "driver_pid": os.getpid(),
            "driver_environment": hashlib.sha256(_of_this_process("environ").encode()).hexdigest(),
        }


def _ssh_folder() -> str:
    """Also for a user that this machine knows no home of, as in some containers."""
    try:
        return str(Path.home() / ".ssh")
    except RuntimeError:
        return "/root/.ssh"


def _of_this_process(name: str) -> str:
    text = Path(f"/proc/self/{name}").read_bytes()[:65536].replace(b"\0", b" ")
    return text.decode("utf-8", "replace")
