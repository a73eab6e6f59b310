"""A request that cannot be done, through its sender's doing: the slot answers it and lives on."""

from __future__ import annotations

import errno
import os

_KINDS = {
    errno.ENOENT: "not_found",
    errno.EISDIR: "is_a_directory",
    errno.ENOTDIR: "not_a_directory",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.ETXTBSY: "permission_denied",
    errno.ENXIO: "not_a_file",
    errno.ENODEV: "not_a_file",
    errno.EFBIG: "too_large",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EAGAIN: "cannot_start",
    errno.ENOMEM: "cannot_start",
    errno.EMFILE: "cannot_start",
    errno.ENFILE: "cannot_start",
}


class RefusedError(Exception):
    """`kind` is a value of the driver's `FailureKind`; the message is fit for the model to read."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def from_os_error(error: OSError, subject: str) -> RefusedError:
    """The failure that an `OSError` about `subject` amounts to."""
    number = error.errno or 0
    return RefusedError(
        _KINDS.get(number, "bad_request"), "%s: %s" % (subject, os.strerror(number))
    )
