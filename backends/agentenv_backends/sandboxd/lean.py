"""What a slot's init needs of the system, without the heavy half of the standard library.

`signal`, `json` and `ctypes` would double the start-up time of a slot (10 ms more) and its private memory. The C
modules below them do the same; where an interpreter lacks one, its usual parent is taken instead.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

SIGKILL, SIGCHLD, SIGSTOP = 9, 17, 19
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
_RTLD_NOW = 2
_SFD_CLOEXEC = 0o2000000
SIGINFO_SIZE = 128


def _c_function(name: str) -> Callable[..., int]:
    try:
        import _ctypes  # noqa: PLC0415

        program = _ctypes.dlopen(None, _RTLD_NOW)  # type: ignore[arg-type]
        address = _ctypes.dlsym(program, name)
        call = _ctypes.call_function
    except (ImportError, AttributeError):
        import ctypes  # noqa: PLC0415

        function: Callable[..., int] = getattr(ctypes.CDLL(None, use_errno=True), name)
        return function
    return lambda *arguments: int(call(address, arguments))


def prctl(option: int, value: int) -> None:
    """Set a property of this process. Raises `OSError`."""
    if _c_function("prctl")(option, value, 0, 0, 0) != 0:
        raise OSError("prctl(%d, %d) failed" % (option, value))


def child_signals() -> int:
    """Block SIGCHLD and return a descriptor that is readable when one is pending (reads give `SIGINFO_SIZE` bytes)."""
    import _signal  # type: ignore[import-not-found]  # noqa: PLC0415

    _signal.pthread_sigmask(_signal.SIG_BLOCK, (SIGCHLD,))
    mask = (1 << (SIGCHLD - 1)).to_bytes(8, "little") + bytes(120)
    descriptor = _c_function("signalfd")(-1, mask, _SFD_CLOEXEC)
    if descriptor < 0:
        raise OSError("signalfd failed")
    return descriptor


class _ScannerOptions:
    """What `_json`'s scanner asks of the decoder it is made for."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float

    def __init__(self) -> None:
        self.memo: dict[str, str] = {}


def _make_json_loads() -> Callable[[str], Any]:
    try:
        from _json import make_scanner  # noqa: PLC0415
    except ImportError:
        import json  # noqa: PLC0415

        return json.loads
    scan = make_scanner(_ScannerOptions())  # type: ignore[arg-type]
    return lambda text: scan(text, 0)[0]


json_loads = _make_json_loads()
"""Parse JSON text that this package wrote: no leading white space."""


def json_dumps(value: Any) -> bytes:
    """JSON, as ASCII bytes; imports `json` only when first needed."""
    import json  # noqa: PLC0415

    return json.dumps(value, separators=(",", ":")).encode("ascii")


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything. Raises `OSError`."""
    written = os.write(descriptor, data)
    while written < len(data):
        data = data[written:]
        written = os.write(descriptor, data)
