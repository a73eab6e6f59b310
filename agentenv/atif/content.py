"""Content of messages and results, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentenv.atif.models import Content, ContentPart


def content_text(content: Content | None) -> str:
    """Content as text: parts on lines of their own, images and sounds by what and where they are."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "\n".join(map(_part_text, content))


def _part_text(part: ContentPart) -> str:
    if part.source is None:
        return part.text or ""
    return f"[{part.source.media_type}: {part.source.path}]"
