"""Images in tool results: what their headers say, read without decoding anything.

A decoder is the classic way for a picture to do harm, so none runs here. What is checked: the size in bytes, that the
first bytes are those of the format, and that the header's width and height are not such that showing them takes
gigabytes. Not checked: that the rest can be decoded, and how many frames an animation has.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING

from agentenv_backends.requests import DEFAULT_MAX_IMAGE_BYTES
from agentenv_tools.schema import ImagePart

if TYPE_CHECKING:
    from collections.abc import Callable

    Size = tuple[int, int]

MAX_SIDE = 8_000
"""Pixels, in width and in height."""
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Segments that begin with the size of the picture (`SOF`)."""
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""


def image_part(
    content: bytes, media_type: str, *, max_bytes: int = DEFAULT_MAX_IMAGE_BYTES
) -> ImagePart:
    """An image of bytes that nobody vouches for. Raises `ValueError`, in words fit for a model, unless it is sound."""
    read_size = _READERS.get(media_type)
    if read_size is None:
        raise ValueError(f"{media_type[:100]!r} is none of {', '.join(_READERS)}")
    if len(content) > max_bytes:
        raise ValueError(f"{media_type} of {len(content)} bytes; at most {max_bytes} can be shown")
    try:
        width, height = read_size(content)
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"{media_type} with a header that makes no sense") from error
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(
            f"{media_type} of {width} x {height} pixels; each side is 1 to {MAX_SIDE} to be shown"
        )
    return ImagePart(media_type, base64.b64encode(content).decode("ascii"), width, height)


def describe_image(part: ImagePart) -> str:
    """An image in one line of text."""
    size = len(part.data) // 4 * 3 - part.data[-2:].count("=")
    return f"[{part.media_type}, {part.width} x {part.height} pixels, {size} bytes]"


def _png(data: bytes) -> Size:
    _expect(data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> Size:
    _expect(data[:6] in (b"GIF87a", b"GIF89a"))
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _jpeg(data: bytes) -> Size:
    _expect(data.startswith(b"\xff\xd8"))
    at = 2
    while True:
        _expect(data[at] == 0xFF)
        while data[at + 1] == 0xFF:  # padding
            at += 1
        marker = data[at + 1]
        at += 2
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker not in _JPEG_BARE:
            (length,) = struct.unpack_from(">H", data, at)
            _expect(length >= 2 and marker != 0xDA)
            at += length


def _webp(data: bytes) -> Size:
    _expect(data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    chunk = data[12:16]
    if chunk == b"VP8X":
        _expect(len(data) >= 30)
        return _int24(data, 24) + 1, _int24(data, 27) + 1
    if chunk == b"VP8L":
        _expect(data[20] == 0x2F)
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    _expect(chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a")
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _int24(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _expect(sound: bool) -> None:
    if not sound:
        raise ValueError


_READERS: dict[str, Callable[[bytes], Size]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
}
