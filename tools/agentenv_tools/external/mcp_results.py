"""What an MCP server answers, as a model reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from mcp import types

from agentenv_tools._bounds import bounded_result
from agentenv_tools.external.images import Images
from agentenv_tools.schema import ToolResult

if TYPE_CHECKING:
    from collections.abc import Callable


def tool_result(answer: types.CallToolResult, mask: Callable[[str], str]) -> ToolResult:
    """Text as it is; structured content only where there is no text, since it says the same again.

    `isError` is the tool's failure: its text is the `error`. What a model cannot read here (sound, binary
    resources) is named in its place.
    """
    images = Images()
    parts = [part for block in answer.content if (part := _text(block, images))]
    if not parts and answer.structuredContent is not None:
        parts = [json.dumps(answer.structuredContent, ensure_ascii=False)]
    text = mask("\n".join(parts))
    result = ToolResult(success=True, output=text, images=images.kept)
    if answer.isError:
        result = replace(result, success=False, output="", error=text or "the tool failed")
    return bounded_result(result)


def _text(block: types.ContentBlock, images: Images) -> str:
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent():
            return images.take(block.data, block.mimeType)
        case types.AudioContent():
            return f"[audio, {block.mimeType}]"
        case types.ResourceLink():
            return f"[resource {block.uri}]"
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return resource.text
        case types.EmbeddedResource():
            return f"[binary resource {block.resource.uri}]"
