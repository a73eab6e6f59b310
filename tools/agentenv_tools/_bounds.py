"""Keeping what a tool answers within what a driver holds and a model reads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from agentenv_backends.results import Capture

if TYPE_CHECKING:
    from agentenv_tools.schema import ToolResult

MAX_OUTPUT_BYTES = 50_000
"""Bytes of output a model reads of one call of an external tool; the same of its error."""
MAX_METADATA_BYTES = 50_000


def bounded_result(result: ToolResult, max_bytes: int = MAX_OUTPUT_BYTES) -> ToolResult:
    """`result` with the middle of a long output and error dropped, which a line in its place says.

    Metadata that is too large is replaced by a note.
    """
    output, error = bounded_text(result.output, max_bytes), result.error
    if error is not None:
        error = bounded_text(error, max_bytes)
    metadata = _bounded_metadata(result.metadata)
    if output != result.output:
        total = len(result.output.encode("utf-8", "replace"))
        metadata = {**metadata, "truncated": {"output": {"total_bytes": total}}}
    return replace(result, output=output, error=error, metadata=metadata)


def bounded_text(text: str, max_bytes: int = MAX_OUTPUT_BYTES) -> str:
    """`text` if it is short enough as UTF-8, else its start and its end."""
    if len(text) * 4 <= max_bytes:
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    half = max_bytes // 2
    return Capture(data[:half], data[len(data) - half :], len(data)).text()


def _bounded_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    size = len(to_json(metadata, inf_nan_mode="strings", fallback=str)) if metadata else 0
    if size <= MAX_METADATA_BYTES:
        return metadata
    return {"dropped": f"{size} bytes of metadata; at most {MAX_METADATA_BYTES} are kept"}
