"""One HTML page of inert data, one script and one style.

The data is JSON in blocks that no browser runs; the script puts it on the page as text nodes. A strict policy in the
page names script and style by hash and allows nothing else but images that are in the page itself: no request, no
other script, no form, no frame.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


_HEAD, _ELEMENTS = "agentenv.run/head.html", "agentenv.run/elements.js"


@dataclass(frozen=True, slots=True)
class PageSource:
    """What a page is made of beside its data: files of `templates` folders, as `package/file`.

    Every page begins with the same head and the building blocks of `elements.js`.
    """

    scripts: tuple[str, ...]
    styles: tuple[str, ...] = ("agentenv.run/report.css",)
    body: str = "agentenv.run/report.html"

    def script(self) -> str:
        """All scripts, as one."""
        return "".join(map(_source, (_ELEMENTS, *self.scripts)))

    def style(self) -> str:
        """All styles, as one."""
        return "".join(map(_source, self.styles))


RUN_PAGE = PageSource(
    scripts=(
        "agentenv.run/trajectory.js",
        "agentenv.run/terminal.js",
        "agentenv.run/report.js",
    )
)


def page_start(title: str, source: PageSource = RUN_PAGE, *, asks: bool = False) -> bytes:
    """The page up to its data. With `asks` its script may ask the server that it came from, and nobody else."""
    style = source.style()
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"script-src {_hash(source.script())}; style-src {_hash(style)}; img-src data:"
    )
    if asks:
        policy += "; connect-src 'self'"
    head = Template(_source(_HEAD)).substitute(title=html.escape(title), policy=policy, style=style)
    return (head + _source(source.body)).encode("utf-8", "replace")


def page_end(source: PageSource = RUN_PAGE) -> bytes:
    """The rest of the page: its script."""
    return f"<script>{source.script()}</script>\n</body>\n</html>\n".encode()


def _source(name: str) -> str:
    package, _, file = name.partition("/")
    return (files(package) / "templates" / file).read_text("utf-8")


def data_block(name: str, value: Any) -> bytes:
    """A value as a block of data. Nothing in it can end the block: `<`, `>` and `&` are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
    block = f'<script type="application/json" id="{name}">{text}</script>\n'
    return block.encode("utf-8", "replace")


def packed_block(name: str, data: bytes) -> bytes:
    """Bytes, compressed, as a block of base64 that a script unpacks when it is asked for: `packed.js`."""
    text = base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()
    return f'<script type="text/plain" id="{name}">{text}</script>\n'.encode()


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def clip(value: Any, limit: int, whole: str = "groups.jsonl") -> Any:
    """A copy of a JSON value whose longer texts are cut to `limit` characters, saying so; `whole` has all of them."""
    if isinstance(value, str):
        return value if len(value) <= limit else _cut(value, limit, whole)
    if isinstance(value, dict):
        return {_key(key): clip(entry, limit, whole) for key, entry in value.items()}
    return [clip(entry, limit, whole) for entry in value] if isinstance(value, list) else value


def _key(key: str) -> str:
    return key if len(key) <= 200 else f"{key[:200]}..."


def _cut(text: str, limit: int, whole: str) -> str:
    head, tail = text[: limit * 3 // 4], text[-(limit // 4) :]
    left_out = len(text) - len(head) - len(tail)
    return (
        f"{head}\n[... {left_out:,} characters are not in this page; {whole} has them ...]\n{tail}"
    )


def run_lengths(flags: Iterator[bool]) -> list[int]:
    """Lengths of runs of equal flags, the first of False (0 when it starts with True)."""
    lengths, current, count = [], False, 0
    for flag in flags:
        if flag is not current:
            lengths.append(count)
            current, count = flag, 0
        count += 1
    return [*lengths, count]
