"""Images are judged by their headers alone."""

import base64
import struct
from contextlib import suppress

import pytest

from agentenv_tools.images import MAX_SIDE, describe_image, image_part
from agentenv_tools.schema import ImagePart, ToolResult


def png(width: int, height: int) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\2\0\0\0"
    )


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0;"


def jpeg(width: int, height: int) -> bytes:
    app = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + bytes(9)
    tables = b"\xff\xff\xff\xdb" + struct.pack(">H", 67) + bytes(65)
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8" + app + b"\xff\x01" + tables + frame + b"\xff\xda"


def webp(chunk: bytes, data: bytes) -> bytes:
    return b"RIFF\x24\0\0\0WEBP" + chunk + struct.pack("<I", len(data)) + data


def webp_lossy(width: int, height: int) -> bytes:
    return webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width | 0x4000, height))


def webp_lossless(width: int, height: int) -> bytes:
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14 | 1 << 28))


def webp_extended(width: int, height: int) -> bytes:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    return webp(b"VP8X", b"\x10\0\0\0" + sides)


FORMATS = [
    ("image/png", png),
    ("image/gif", gif),
    ("image/jpeg", jpeg),
    ("image/webp", webp_lossy),
    ("image/webp", webp_lossless),
    ("image/webp", webp_extended),
]


@pytest.mark.parametrize(("media_type", "make"), FORMATS)
def test_width_and_height_are_read_from_the_header(media_type, make):
    part = image_part(make(640, 481), media_type)
    assert (part.width, part.height) == (640, 481)
    assert base64.b64decode(part.data) == make(640, 481)
    assert part.url.startswith(f"data:{media_type};base64,")
    assert describe_image(part) == f"[{media_type}, 640 x 481 pixels, {len(make(640, 481))} bytes]"


@pytest.mark.parametrize(("media_type", "make"), FORMATS)
def test_an_image_that_would_take_gigabytes_to_show_is_refused(media_type, make):
    image_part(make(MAX_SIDE, MAX_SIDE), media_type)
    with pytest.raises(ValueError, match=f"of {MAX_SIDE + 1} x 1 pixels"):
        image_part(make(MAX_SIDE + 1, 1), media_type)


@pytest.mark.parametrize(("media_type", "make"), FORMATS)
def test_a_header_that_is_cut_or_spoilt_anywhere_raises_nothing_but_value_errors(media_type, make):
    whole = make(3, 3)
    for end in range(len(whole)):
        with suppress(ValueError):
            image_part(whole[:end], media_type)
        for value in (0, 0xFF):
            with suppress(ValueError):
                image_part(whole[:end] + bytes([value]) + whole[end + 1 :], media_type)
    with pytest.raises(ValueError, match="makes no sense"):
        image_part(whole[:8], media_type)


def test_one_format_is_not_taken_for_another():
    for media_type, _ in FORMATS:
        for other, make in FORMATS:
            if other != media_type:
                with pytest.raises(ValueError, match="makes no sense"):
                    image_part(make(3, 3), media_type)


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="each side is 1 to"):
        image_part(png(*size), "image/png")


def test_an_image_of_too_many_bytes_is_refused():
    with pytest.raises(ValueError, match="of 33 bytes; at most 20"):
        image_part(png(3, 3) + bytes(4), "image/png", max_bytes=20)


@pytest.mark.parametrize("media_type", ["image/svg+xml", "text/html", "", "image/png;x", "IMAGE/PNG"])  # fmt: skip
def test_other_media_types_are_refused(media_type):
    with pytest.raises(ValueError, match="none of"):
        image_part(png(3, 3), media_type)
    with pytest.raises(ValueError, match="media type"):
        ImagePart(media_type, "", 1, 1)


def test_an_image_is_no_part_of_what_becomes_text():
    part = image_part(png(3, 3), "image/png")
    result = ToolResult(success=True, output="a picture", images=(part,))
    for text in (result.to_json(), result.to_xml(), repr(result)):
        assert part.data not in text
    assert result.to_payload() == {"success": True, "output": "a picture"}
    assert result.to_payload(images=True)["images"] == [
        {"type": "image", "media_type": "image/png", "width": 3, "height": 3, "data": part.data}
    ]
