"""Changing a text file in one place, and looking at files as people do: some lines of a text, or a whole picture."""

from __future__ import annotations

import os
import time

from .refusal import RefusedError, from_os_error
from .slot_files import MAX_OFFSET, TIME_LIMIT_S, read_range, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Tuple

    from .slot_files import Workspace

MAX_EDITED = 16 << 20
MAX_VIEWED = 16 << 20
_HEAD = 8192
"""Bytes that tell a text from anything else."""
_CHUNK = 1 << 20
_IMAGES = (
    (0, b"\x89PNG\r\n\x1a\n", b"image/png"),
    (0, b"\xff\xd8\xff", b"image/jpeg"),
    (0, b"GIF87a", b"image/gif"),
    (0, b"GIF89a", b"image/gif"),
    (8, b"WEBP", b"image/webp"),
)


# --- editing ----------------------------------------------------------------------------------------------------------


def edit(workspace: Workspace, header: Dict[str, Any], body: bytes) -> Tuple[bytes, bytes]:
    """Replace a text that a file holds once. The file is replaced whole, or stays as it was."""
    path, split = header["path"], int(header["old"])
    with workspace.locate(path) as place:
        try:
            descriptor = workspace.open_file(place, path, os.O_RDONLY)
            try:
                content = _whole_text(descriptor, path)
            finally:
                os.close(descriptor)
            every = bool(header.get("all"))
            count, content = edited(content, body[:split], body[split:], path, every=every)
            workspace.replace(place, path, content)
        except OSError as error:
            raise from_os_error(error, show(path)) from error
    return b'{"replacements":%d,"written":%d}' % (count, len(content)), b""


def edited(content: bytes, old: bytes, new: bytes, path: str, *, every: bool) -> Tuple[int, bytes]:
    """How many places are changed, and what the file holds then. Raises `RefusedError` where that is not clear."""
    old, new = _with_line_ends_of(content, old), _with_line_ends_of(content, new)
    return _count(content, old, new, path, every=every), content.replace(old, new)


def _whole_text(descriptor: int, path: str) -> bytes:
    content = read_range(descriptor, 0, MAX_EDITED + 1)
    if len(content) > MAX_EDITED:
        raise RefusedError("too_large", "%s: over %d bytes" % (show(path), MAX_EDITED))
    _check_text(content, 0, path)
    return content


def _with_line_ends_of(content: bytes, text: bytes) -> bytes:
    """`text` with the line ends that `content` has throughout, if those are CRLF; else as it is."""
    crlf = content.count(b"\r\n")
    if not crlf or crlf != content.count(b"\n"):
        return text
    return text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _count(content: bytes, old: bytes, new: bytes, path: str, *, every: bool) -> int:
    """How many places are to change; one, unless `every`."""
    if not old:
        raise RefusedError("bad_request", "old_text is empty; write the whole file instead")
    if old == new:
        raise RefusedError("bad_request", "old_text and new_text are the same")
    first = content.find(old)
    if first < 0:
        raise RefusedError(
            "no_match", "%s: old_text is not in it, as it stands (blanks count)" % show(path)
        )
    if every:
        return content.count(old)
    second = content.find(old, first + 1)
    if second >= 0:
        lines = tuple(1 + content.count(b"\n", 0, at) for at in (first, second))
        text = "%s: old_text is in it more than once (lines %d, %d, ...): give more of the text around it"
        raise RefusedError("several_matches", text % (show(path), lines[0], lines[1]))
    return 1


def _check_text(content: bytes, offset: int, path: str) -> None:
    """Raises `RefusedError` unless `content`, which begins at byte `offset` of the file, is UTF-8 without NUL bytes."""
    nul = content.find(b"\0")
    if nul >= 0:
        raise _not_text(path, "a NUL byte", offset + nul)
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        what = "0x%02x, which is not UTF-8," % content[error.start]
        raise _not_text(path, what, offset + error.start) from error


def _not_text(path: str, what: str, offset: int) -> RefusedError:
    return RefusedError("not_text", "%s: no text: %s at byte %d" % (show(path), what, offset))


# --- viewing ----------------------------------------------------------------------------------------------------------


def view(workspace: Workspace, header: Dict[str, Any]) -> Tuple[bytes, bytes]:
    """Lines of a text file, or an image whole. An image is told by its content, whatever its name."""
    path = header["path"]
    limits = [header["max"], header["max_image"]]
    if not all(0 < limit <= MAX_VIEWED for limit in limits):
        raise RefusedError("bad_request", "max_bytes and max_image_bytes are 1 to %d" % MAX_VIEWED)
    if not (0 <= header["line"] <= MAX_OFFSET and 0 < header["lines"] <= MAX_OFFSET):
        raise RefusedError("bad_request", "first_line is 0 or more, max_lines 1 or more")
    with workspace.locate(path) as place:
        try:
            descriptor = workspace.open_file(place, path, os.O_RDONLY)
            try:
                return _view(descriptor, header)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise from_os_error(error, show(path)) from error


def _view(descriptor: int, header: Dict[str, Any]) -> Tuple[bytes, bytes]:
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, _HEAD, 0)
    media_type = image_type(head)
    if not media_type:
        return _view_lines(descriptor, header, size, head)
    limit = header["max_image"]
    if size > limit:
        text = "%s: an image of %d bytes; at most %d can be shown"
        raise RefusedError("too_large", text % (show(header["path"]), size, limit))
    answer = b'{"type":"%s","size":%d,"first":0,"lines":0,"more":0,"cut":0}'
    return answer % (media_type, size), read_range(descriptor, 0, size)


def image_type(head: bytes) -> bytes:
    """The media type of a picture that browsers and models know; empty for anything else."""
    if b"\0" not in head:
        return b""  # a text may begin like one
    if head[8:12] == b"WEBP" and head[:4] != b"RIFF":
        return b""
    return next((kind for at, magic, kind in _IMAGES if head.startswith(magic, at)), b"")


def _view_lines(
    descriptor: int, header: Dict[str, Any], size: int, head: bytes
) -> Tuple[bytes, bytes]:
    path, first, limit = header["path"], header["line"], header["max"]
    if b"\0" in head:
        raise _not_text(path, "a NUL byte", head.index(b"\0"))
    start = _start_of_line(descriptor, first, path)
    data = read_range(descriptor, start, limit + 1)
    shown = _lines_within(data, header["lines"], limit)
    _check_text(shown, start, path)
    more, unended = len(shown) < len(data), bool(shown) and not shown.endswith(b"\n")
    place = b'"first":%d,"lines":%d' % (first, shown.count(b"\n") + unended)
    rest = b'"more":%d,"cut":%d' % (more, more and unended)
    return b'{"type":"text/plain","size":%d,%s,%s}' % (size, place, rest), shown


def _start_of_line(descriptor: int, wanted: int, path: str) -> int:
    """The byte at which a line begins, counted from 0. Raises `RefusedError` when there are not so many."""
    offset = lines = 0
    last = b"\n"
    end = time.monotonic() + TIME_LIMIT_S
    while lines < wanted:
        chunk = os.pread(descriptor, _CHUNK, offset)
        if not chunk:
            break
        if b"\0" in chunk:
            raise _not_text(path, "a NUL byte", offset + chunk.index(b"\0"))
        if time.monotonic() > end:
            raise RefusedError("too_large", "%s: too large to count its lines" % show(path))
        used = _end_of_lines(chunk, wanted - lines)
        lines += chunk.count(b"\n", 0, used)
        offset += used
        last = chunk[used - 1 : used]
    if wanted and not os.pread(descriptor, 1, offset):
        lines += last != b"\n"
        text = "%s: has %d lines; line %d, counted from 0, is beyond its end"
        raise RefusedError("bad_request", text % (show(path), lines, wanted))
    return offset


def _lines_within(data: bytes, lines: int, limit: int) -> bytes:
    """The first lines, no more than `limit` bytes of them: whole ones, unless the first is too long itself."""
    end = _end_of_lines(data, lines)
    if end > limit:
        end = data.rfind(b"\n", 0, limit) + 1
    if end:
        return data[:end]
    end = min(limit, len(data))
    for _ in range(3):  # a character has up to four bytes
        end -= end < len(data) and data[end] & 0xC0 == 0x80
    return data[:end]


def _end_of_lines(data: bytes, count: int) -> int:
    """Where the first `count` lines end; the end of all, if there are no more."""
    if data.count(b"\n") < count:
        return len(data)
    at = 0
    for _ in range(count):
        at = data.index(b"\n", at) + 1
    return at
