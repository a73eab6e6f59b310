"""A well-behaved MCP server with tools that misbehave: over stdio, or with a port as argument over HTTP."""

import asyncio
import os
import subprocess
import sys
import time

from mcp.server.fastmcp import FastMCP, Image

server = FastMCP("fixture", log_level="ERROR", stateless_http=False)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c626001000000ffff03000006000557bfabd40000000049454e44ae426082"
)
begun: list[float] = []
cancelled: list[float] = []
noted: list[str] = []


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def note(text: str) -> str:
    """Remember a text; answer with all there are."""
    noted.append(text)
    return ",".join(noted)


@server.tool()
async def slow(seconds: float) -> str:
    """Take a while."""
    begun.append(seconds)
    try:
        await asyncio.sleep(seconds)
    except BaseException:
        cancelled.append(seconds)
        raise
    return "done"


@server.tool()
def slow_calls() -> int:
    """How many slow calls have begun."""
    return len(begun)


@server.tool()
def withdrawn() -> str:
    """Which slow calls were cancelled."""
    return str(cancelled)


@server.tool()
def block(seconds: float) -> str:
    """Hold up the whole server."""
    time.sleep(seconds)
    return "done"


@server.tool()
def boom() -> str:
    """Fail."""
    raise ValueError("it went wrong")


@server.tool()
def big(size: int) -> str:
    """Answer a lot."""
    return "x" * size


@server.tool()
def die() -> str:
    """End the server in the middle of a call."""
    os.write(2, b"last words\n")
    os._exit(3)


@server.tool()
def environment() -> dict[str, str]:
    """The variables this server has."""
    return dict(os.environ)


@server.tool()
def spawn() -> int:
    """Leave a process behind, in a session of its own."""
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


@server.tool()
def pids() -> list[int]:
    """This process and the one that guards it."""
    return [os.getpid(), os.getppid()]


@server.tool(name="draw.image", structured_output=False)
def draw() -> list[str | Image]:
    """Draw a dot."""
    return ["a dot:", Image(data=PNG, format="png")]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.settings.port = int(sys.argv[1])
        server.run("streamable-http")
    else:
        server.run()
