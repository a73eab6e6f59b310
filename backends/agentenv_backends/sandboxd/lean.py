"""What a slot's init needs of the system, without the heavy half of the standard library.

`signal`, `json` and `ctypes` would double the start-up time of a slot (10 ms more) and its private memory. The C
modules below them do the same; where an interpreter lacks one, its usual parent is taken instead.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable

SIGINT, SIGKILL, SIGPIPE, SIGCHLD, SIGSTOP, SIGXFSZ = 2, 9, 13, 17, 19, 25
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 36, 38
_CAPABILITY_VERSION = 0x20080522
_RTLD_NOW = 2
_SFD_CLOEXEC = 0o2000000
SIGINFO_SIZE = 128


def c_function(name: str) -> Callable[..., int]:
    """A function of the C library that takes numbers of at most 31 bits and bytes, and gives such a number."""
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
    if c_function("prctl")(option, value, 0, 0, 0) != 0:
        raise OSError("prctl(%d, %d) failed" % (option, value))


def child_signals() -> int:
    """Block SIGCHLD and return a descriptor that is readable when one is pending (reads give `SIGINFO_SIZE` bytes)."""
    import _signal  # type: ignore[import-not-found]  # noqa: PLC0415

    _signal.pthread_sigmask(_signal.SIG_BLOCK, (SIGCHLD,))
    mask = (1 << (SIGCHLD - 1)).to_bytes(8, "little") + bytes(120)
    descriptor = c_function("signalfd")(-1, mask, _SFD_CLOEXEC)
    if descriptor < 0:
        raise OSError("signalfd failed")
    return descriptor


def unblock_signals() -> None:
    """Block no signal: for a child that is about to begin a program."""
    import _signal  # noqa: PLC0415

    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def default_signals(blocked: Iterable[int] = ()) -> None:
    """Let every signal do what it does by default, but for a few that are blocked: so they neither end this process nor
    are passed on to the programs it starts, which begin with no signal blocked.

    Handlers would do, but `posix_spawn` takes them back in the child, which costs two calls each.
    """
    import _signal  # noqa: PLC0415

    for number in range(1, 65):
        try:
            _signal.signal(number, _signal.SIG_DFL)
        except (
            OSError,
            ValueError,
        ):  # SIGKILL, SIGSTOP and those that the C library keeps to itself
            continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, blocked)


def set_capabilities(permitted: int) -> None:
    """Make these the permitted and effective capabilities, none inherited. Raises `OSError`."""
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    if c_function("capset")(header, struct.pack("=6I", low, low, 0, high, high, 0)) != 0:
        raise OSError("capset(%x) failed" % permitted)


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


def _make_json_text() -> Callable[[str], str]:
    try:
        from _json import encode_basestring_ascii  # noqa: PLC0415
    except ImportError:
        import json  # noqa: PLC0415

        return json.dumps
    return encode_basestring_ascii


json_text = _make_json_text()
"""A string as JSON, in ASCII; lone surrogates become escapes."""


def json_dumps(value: Any) -> bytes:
    """JSON, as ASCII bytes; imports `json` only when first needed."""
    import json  # noqa: PLC0415

    return json.dumps(value, separators=(",", ":")).encode("ascii")


def join_groups(files: Iterable[str]) -> None:
    """Move this process into control groups, given their `cgroup.procs`. Raises `OSError`."""
    for path in files:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)


def find_program(name: str, path: str) -> str:
    """Where a program lies, looked for in the folders of `path`; empty when it is in none."""
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return ""


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything. Raises `OSError`."""
    written = os.write(descriptor, data)
    while written < len(data):
        data = data[written:]
        written = os.write(descriptor, data)
