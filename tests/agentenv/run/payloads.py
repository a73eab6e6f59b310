"""Text that tries to run or to call out, were it taken for markup, and a server that notes whether it did."""

import base64
import http.server
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from agentenv_tools.schema import ImagePart


@dataclass
class Listener:
    """A server on this machine that notes who calls."""

    port: int
    calls: list[str] = field(default_factory=list)

    def payloads(self) -> str:
        """Everything that would run or call out, were it taken for markup."""
        return "\n".join([*self.staying(), self.leaving()])

    def leaving(self) -> str:
        """What would take the browser to another page."""
        return f"<base href={self.here}/> <meta http-equiv=refresh content='0;{self.here}/refresh'>"

    @property
    def here(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def staying(self) -> list[str]:
        """What would run or call out without leaving the page."""
        here, title = self.here, "document.title='CANARY'"
        return [
            "\x1b]52;c;Y2FuYXJ5\x07\x1b[31m \u202e\u2066reversed\u2069 \u200b\u2028 \U000e0041",
            f"<script>{title};fetch('{here}/script')</script>",
            f"</script><script>{title}</script>",
            f'<img src={here}/img onerror="{title}">',
            f'<svg/onload="{title}"><iframe src={here}/frame></iframe>',
            f"<style>body{{background:url({here}/css)}}</style><link rel=stylesheet href={here}/link>",
            f"[link](javascript:{title}) ![beacon]({here}/markdown) <a href='data:text/html,x'>x</a>",
            f"$\\href{{javascript:{title}}}{{x}}$",
            f'<form action={here}/form><input autofocus onfocus="{title}"></form>',
            "מ" * 5000,
        ]


@contextmanager
def listening() -> Iterator[Listener]:
    """A server that notes who calls, while the block lasts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            noted.calls.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>CANARY</title>")

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    noted = Listener(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield noted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def dot() -> ImagePart:
    """A dot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    data = (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    )
    return ImagePart("image/png", base64.b64encode(data).decode(), 1, 1)
