"""A command that is a program with its arguments: where it is, and what becomes of one that does not begin."""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

_NOT_FOUND, _NOT_RUN = 127, 126
"""Exit codes that shells give a command that is not there, and one that cannot be run."""
_CODES = {
    errno.ENOENT: _NOT_FOUND,
    errno.ENOTDIR: _NOT_FOUND,
    errno.EACCES: _NOT_RUN,
    errno.EISDIR: _NOT_RUN,
    errno.ELOOP: _NOT_RUN,
    errno.ENAMETOOLONG: _NOT_RUN,
    errno.ENOEXEC: _NOT_RUN,
    errno.ETXTBSY: _NOT_RUN,
}
_USUAL_PATH = "/bin:/usr/bin"
"""Where programs are looked for without a PATH; as the C library does."""
_ANY_EXECUTABLE = 0o111


def find(name: bytes, path: Union[str, None]) -> str:
    """The file to begin for a program of that name, with that `PATH`, seen from the working directory.

    Raises `OSError` with ENOENT when there is none, with EACCES when none may be run.
    """
    program = os.fsdecode(name)
    if "/" in program:
        return program
    number = errno.ENOENT
    for folder in (_USUAL_PATH if path is None else path).split(":") if program else ():
        found = os.path.join(folder or ".", program)
        try:
            mode = os.stat(found).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode):
            if mode & _ANY_EXECUTABLE:
                return found
            number = errno.EACCES
    raise OSError(number, os.strerror(number))


def exit_code(failure: OSError) -> int:
    """What a shell's exit code would be for a program that did not begin for that reason; 0 where it is not its own."""
    return _CODES.get(failure.errno or 0, 0)
