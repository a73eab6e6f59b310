"""How the sandbox server gets into a container: over the stream it will serve, so that no image is
rebuilt and nothing is mounted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentenv_backends.sandboxd.packing import sandboxd_zipapp

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOOT = """
import os, select, sys
if sys.version_info < (3, 8):
    sys.exit("Python %d.%d is too old: the sandbox server needs 3.8 or newer" % sys.version_info[:2])
def take(size):
    while size:
        if not select.select([0], [], [], 60)[0]:
            sys.exit("the driver did not send the sandbox server")
        piece = os.read(0, min(size, 65536))
        if not piece:
            sys.exit("the driver went before it had sent the sandbox server")
        size -= len(piece)
        yield piece
size = int.from_bytes(b"".join(take(8)), "big")
program = os.memfd_create("sandboxd", 0)
with open(program, "wb", closefd=False) as file:
    file.writelines(take(size))
python = sys.argv[1:] + [sys.executable]
os.execv(python[0], python + ["-I", "-S", "/proc/self/fd/%d" % program, "--stdio"])
"""

IMAGES_PYTHON = ("python3",)
"""How the image's own interpreter is started."""


def boot_command(python: Sequence[str]) -> tuple[str, ...]:
    """The main process of a container. It reads `boot_payload()` first, then serves frames.

    `python`: what starts an interpreter. Its path comes last, after a loader where it needs one.
    """
    return (*python, "-I", "-S", "-c", _BOOT.strip(), *python[:-1])


BOOT_COMMAND = boot_command(IMAGES_PYTHON)
"""That of an image with Python."""


def boot_payload() -> bytes:
    """What the main process is sent before anything else: the server, after its length."""
    program = sandboxd_zipapp()
    return len(program).to_bytes(8, "big") + program
