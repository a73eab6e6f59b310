"""Images that a server sent: taken when sound, else named in words."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from agentenv_tools.images import describe_image, image_part

if TYPE_CHECKING:
    from agentenv_tools.schema import ImagePart

MAX_IMAGES = 8
"""Of one call. The text names the others."""


class Images:
    """Collects the images of one result."""

    def __init__(self) -> None:
        self._kept: list[ImagePart] = []

    def take(self, data: str, media_type: str) -> str:
        """Keep an image given as base64, if it is one and there is room. Returns the line that stands for it."""
        if len(self._kept) >= MAX_IMAGES:
            return f"[image left out: at most {MAX_IMAGES} are kept]"
        try:
            part = image_part(base64.b64decode(data, validate=True), media_type)
        except ValueError as error:
            return f"[image left out: {error}]"
        self._kept.append(part)
        return describe_image(part)

    @property
    def kept(self) -> tuple[ImagePart, ...]:
        """Those taken, in order."""
        return tuple(self._kept)
