"""One HTML page of inert data, one script and one style.

The data is JSON in blocks that no browser runs; the script puts it on the page as text nodes. A strict policy in the
page names script and style by hash and allows nothing else but images that are in the page itself: no request, no
other script, no form, no frame.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def page_start(title: str) -> bytes:
    """The page up to its data."""
    style = _source("report.css")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"script-src {_hash(_script())}; style-src {_hash(style)}; img-src data:"
    )
    page = Template(_source("report.html"))
    return page.substitute(title=html.escape(title), policy=policy, style=style).encode(
        "utf-8", "replace"
    )


def page_end() -> bytes:
    """The rest of the page: its script."""
    return f"<script>{_script()}</script>\n</body>\n</html>\n".encode()


def _script() -> str:
    return _source("elements.js") + _source("terminal.js") + _source("report.js")


def _source(name: str) -> str:
    return (files("agentenv.run") / "templates" / name).read_text("utf-8")


def data_block(name: str, value: Any) -> bytes:
    """A value as a block of data. Nothing in it can end the block: `<`, `>` and `&` are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
    block = f'<script type="application/json" id="{name}">{text}</script>\n'
    return block.encode("utf-8", "replace")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def clip(value: Any, limit: int) -> Any:
    """A copy of a JSON value whose longer texts are cut to `limit` characters, saying so."""
    if isinstance(value, str):
        return value if len(value) <= limit else _cut(value, limit)
    if isinstance(value, dict):
        return {_key(key): clip(entry, limit) for key, entry in value.items()}
    return [clip(entry, limit) for entry in value] if isinstance(value, list) else value


def _key(key: str) -> str:
    return key if len(key) <= 200 else f"{key[:200]}..."


def _cut(text: str, limit: int) -> str:
    head, tail = text[: limit * 3 // 4], text[-(limit // 4) :]
    left_out = len(text) - len(head) - len(tail)
    return f"{head}\n[... {left_out:,} characters are not in this page; groups.jsonl has them ...]\n{tail}"


def run_lengths(flags: Iterator[bool]) -> list[int]:
    """Lengths of runs of equal flags, the first of False (0 when it starts with True)."""
    lengths, current, count = [], False, 0
    for flag in flags:
        if flag is not current:
            lengths.append(count)
            current, count = flag, 0
        count += 1
    return [*lengths, count]
