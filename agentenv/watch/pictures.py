"""Images of tool results that a live page can ask for: the latest, as many as there is room for."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from agentenv.run.pictures import MAX_PICTURE_CHARS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv_tools.schema import ImagePart

MAX_KEPT_CHARS = 48_000_000
"""Base64 characters of all that are kept. Beyond it the oldest go."""
_MAX_OF_A_RESULT = 20


class KeptPictures:
    """By number, in the order they came."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, ImagePart] = OrderedDict()
        self._last = 0
        self._chars = 0

    def add(self, images: Sequence[ImagePart]) -> list[dict[str, Any]]:
        """What an entry says of its images: a `note` each, and the `number` to ask for where it is kept."""
        told = [self._add(image) for image in images[:_MAX_OF_A_RESULT]]
        if left_out := len(images) - len(told):
            told.append({"note": f"{left_out:,} more images are not kept here"})
        return told

    def _add(self, image: ImagePart) -> dict[str, Any]:
        note = f"{image.media_type}, {image.width} x {image.height} pixels"
        if len(image.data) > MAX_PICTURE_CHARS:
            return {
                "note": f"{note}: {len(image.data) * 3 // 4:,} bytes are too many for this page"
            }
        self._last += 1
        self._kept[self._last] = image
        self._chars += len(image.data)
        while self._chars > MAX_KEPT_CHARS:
            _, old = self._kept.popitem(last=False)
            self._chars -= len(old.data)
        return {"note": note, "number": self._last}

    def get(self, number: int) -> ImagePart | None:
        """An image that was added; None when it is no longer kept."""
        return self._kept.get(number)
