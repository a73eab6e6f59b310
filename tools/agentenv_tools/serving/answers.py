"""What a service answers: JSON, errors that name their kind, and never a stack trace."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from agentenv_tools.schema import ToolResult

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a JSON body, ready to be sent."""

    status: int
    body: bytes

    @classmethod
    def of(cls, payload: Any, status: int = 200) -> Answer:
        """Of anything JSON can carry. Lone surrogates in text become question marks."""
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False)
        return cls(status, text.encode("utf-8", "replace"))

    @classmethod
    def error(cls, status: int, kind: str, message: str, **more: Any) -> Answer:
        """`{"error": {"kind", "message"}}`; `kind` is for programs, `message` for people."""
        return cls.of({"error": {"kind": kind, "message": message, **more}}, status)

    def response(self, headers: dict[str, str] | None = None) -> Response:
        """As Starlette sends it."""
        return Response(
            self.body, self.status, headers=headers, media_type="application/json; charset=utf-8"
        )


class HttpError(Exception):
    """A request that is refused."""

    def __init__(
        self, status: int, kind: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.headers = headers or {}

    def answer(self, **more: Any) -> Answer:
        """What the caller reads."""
        return Answer.error(self.status, self.kind, str(self), **more)


def result_answer(result: ToolResult) -> Answer:
    """A tool's result, with all its documented keys; `images` only where there are any."""
    payload: dict[str, Any] = {
        "success": result.success,
        "output": result.output,
        "error": result.error,
        "metadata": result.metadata,
        "uniq_id": result.uniq_id,
    }
    if result.images:
        payload["images"] = [image.to_payload() for image in result.images]
    return Answer.of(payload)


def kind_of(error: BaseException) -> str:
    """A machine-readable name: `HostLostError` is `host_lost`."""
    return _WORD_START.sub("_", type(error).__name__.removesuffix("Error")).lower()
