"""The sandbox server as one file, to be run by any Python 3.8 or newer: `python -I sandboxd.pyz`."""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path

_PACKAGE = "agentenv_sandboxd"
_MAIN = "from %s.main import main\n\nmain()\n" % _PACKAGE
_EPOCH = (1980, 1, 1, 0, 0, 0)


@lru_cache(maxsize=1)
def sandboxd_zipapp() -> bytes:
    """The zip file: the same bytes for the same sources. Its entry point serves the socket on standard input."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        _add(archive, "__main__.py", _MAIN.encode("ascii"))
        for path in sorted(Path(__file__).parent.glob("*.py")):
            if path.name != Path(__file__).name:
                _add(archive, "%s/%s" % (_PACKAGE, path.name), path.read_bytes())
    return b"#!/usr/bin/env python3\n" + buffer.getvalue()


def write_zipapp(path: Path) -> Path:
    """Write the zip file to `path` and return it."""
    path.write_bytes(sandboxd_zipapp())
    path.chmod(0o755)
    return path


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)
