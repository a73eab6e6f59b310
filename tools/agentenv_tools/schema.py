"""The data a tool call is made of. Frozen; `Tool` (behaviour) is in `base.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""Raster formats that browsers and models know. No SVG: that is a program."""


def new_call_id() -> str:
    """An id for a call whose writer gave none."""
    return uuid4().hex


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """What a model is told of a tool. `parameters` maps each name to its JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    external: bool = False
    """Runs outside the sandbox, by way of a tool server."""

    def to_openai(self) -> dict[str, Any]:
        """The function form of the OpenAI chat API."""
        parameters = {
            "type": "object",
            "properties": self.parameters,
            "required": list(self.required),
        }
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": parameters,
            },
        }

    def to_prompt(self) -> str:
        """One line of JSON for a system prompt."""
        return json.dumps(self.to_openai()["function"], ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call a model made. `raw_text` is what it wrote, if this came from text.

    `error` is set when what it wrote is no valid call: the executor then answers with it instead of
    running anything, so that a malformed call is something the model reads about and never
    something that is silently dropped.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    raw_text: str = ""
    uniq_id: str = field(default_factory=new_call_id)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image beside the text of a result. `images.image_part` makes one of bytes that nobody vouches for.

    Raises `ValueError` for a media type that is not one of `IMAGE_TYPES`.
    """

    media_type: str
    data: str = field(repr=False)
    """Base64."""
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.media_type not in IMAGE_TYPES:
            raise ValueError(
                f"media type {self.media_type[:100]!r}: an image here is one of "
                f"{', '.join(sorted(IMAGE_TYPES))}"
            )

    @property
    def url(self) -> str:
        """As a `data:` URL."""
        return f"data:{self.media_type};base64,{self.data}"

    def to_payload(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "type": "image",
            "media_type": self.media_type,
            "width": self.width,
            "height": self.height,
            "data": self.data,
        }


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model gets to read. `success` False means the call failed through the agent's own doing.

    `images` are for policies that take images and for people. The text says what they are: it is all that other
    policies get, and no part of an image is ever made into text.
    """

    success: bool
    output: str = ""
    error: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    uniq_id: str | None = None
    images: tuple[ImagePart, ...] = ()

    def to_payload(self, *, images: bool = False) -> dict[str, Any]:
        """As a JSON object; empty error and metadata are left out, and so are images unless asked for."""
        payload: dict[str, Any] = {"success": self.success, "output": self.output}
        if self.error:
            payload["error"] = self.error
        if self.metadata:
            payload["metadata"] = self.metadata
        if self.uniq_id:
            payload["uniq_id"] = self.uniq_id
        if images and self.images:
            payload["images"] = [image.to_payload() for image in self.images]
        return payload

    def to_xml(self) -> str:
        """The Hermes form: one line of JSON between `<tool_response>` tags, each on a line of its own."""
        return f"<tool_response>\n{self.to_json()}\n</tool_response>"

    def to_json(self) -> str:
        """`to_payload` on one line. No raw newline and no lone surrogate can occur in it."""
        return json.dumps(self.to_payload(), ensure_ascii=False).encode("utf-8", "replace").decode()
