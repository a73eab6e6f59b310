"""Tells, as JSON, which files this interpreter has in use once it has imported the modules named as arguments.

A program of its own, run by the interpreter in question with `-I -S -X frozen_modules=off`: what an import loads, and
what the dynamic loader loads for it, is known for certain only when it has happened.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import warnings
from pathlib import Path

_LEFT_OUT = ("_hashlib", "_ssl")
"""Large for what they are, and who imports them does without."""


class _Object(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("name", ctypes.c_char_p))


def _import(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    for name in _LEFT_OUT:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # of another version of Python: its importer has an alternative


def _modules() -> dict[str, tuple[str, bool]]:
    """File of each module that has one, and whether it is a package."""
    found = {}
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.has_location and spec.origin:
            # By the name it has, not by one that somebody gave it (`os.path`).
            found[spec.name] = (spec.origin, spec.submodule_search_locations is not None)
    return found


def _objects() -> list[str]:
    """Shared objects in use, by the paths that they were asked for; the loader is one of them."""
    names: list[str] = []
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Object), ctypes.c_size_t, ctypes.c_void_p)

    def note(entry: ctypes._Pointer[_Object], _size: int, _data: int) -> int:
        names.append(os.fsdecode(entry.contents.name or b""))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(kind(note), None)
    return [name for name in names if "/" in name]


def main() -> None:
    """See above."""
    _import(sys.argv[1:])
    parts = {
        "executable": str(Path("/proc/self/exe").readlink()),
        "library": f"{sys.platlibdir}/{Path(os.__file__).parent.name}",
        "modules": _modules(),
        "objects": _objects(),
    }
    json.dump(parts, sys.stdout)


if __name__ == "__main__":
    main()
