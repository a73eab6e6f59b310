"""Images of tool results as a report may show them: raster formats, checked once more, of a bounded size.

They become `data:` URLs of `<img>` elements, the only thing the page's policy lets it load. In an image nothing runs,
and a media type from a fixed list cannot be that of something else.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from agentenv_tools.images import image_part

MAX_PICTURE_CHARS = 1_500_000
"""Base64 characters of one image in a page."""


def checked_picture(media_type: str, data: str) -> dict[str, Any]:
    """An image, base64, as a page takes it: `media_type`, `data` and a `note`; the note alone where it is none."""
    try:
        part = image_part(base64.b64decode(data, validate=True), media_type)
    except (binascii.Error, ValueError) as error:
        return {"note": f"An image that cannot be shown: {error}"}
    note = f"{media_type}, {part.width} x {part.height} pixels"
    return {"media_type": media_type, "data": part.data, "note": note}


class Pictures:
    """What a page has room for, first come first served."""

    def __init__(self, *, max_chars: int, whole: str = "groups.jsonl") -> None:
        """`whole` is what has the images that there is no room for."""
        self._room = max_chars
        self._whole = whole

    def put_into(self, shown: dict[str, Any], trajectory: dict[str, Any]) -> None:
        """Give the tool calls of `shown`, a clipped copy of `trajectory`, their images; what is left out says so."""
        for shown_step, step in zip(
            shown.get("steps", ()), trajectory.get("steps", ()), strict=True
        ):
            for call, whole in zip(
                shown_step.get("tool_calls", ()), step.get("tool_calls", ()), strict=True
            ):
                if whole.get("images"):
                    call["images"] = [self._picture(image) for image in whole["images"]]

    def _picture(self, image: dict[str, Any]) -> dict[str, Any]:
        shown = checked_picture(str(image.get("media_type")), str(image.get("data")))
        size = len(shown.get("data", ""))
        if size > min(MAX_PICTURE_CHARS, self._room):
            left_out = f"{size * 3 // 4:,} bytes are not in this page; {self._whole} has them"
            return {"note": f"{shown['note']}: {left_out}"}
        self._room -= size
        return shown
