"""A headless Chromium that tests can click in, by way of its debugging protocol."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
_SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0 --window-size=1500,1100"
)
DEADLINE_S = 60.0
_BETWEEN_PAGES = "Cannot find default execution context"
"""What an expression gives while the first page is not there yet: no value."""
_COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


class Page:
    """The one page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._sent = 0
        self.complaints: list[str] = []
        """Errors on the console and refused requests, from `listen_to_console` on."""
        self.requests: list[str] = []
        """Addresses that were asked, likewise."""

    async def listen_to_console(self) -> None:
        """Note what the console says; what it said before comes first."""
        await self.ask("Log.enable")
        await self.ask("Runtime.enable")
        await self.ask("Network.enable")

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the debugging protocol."""
        self._sent += 1
        await self._socket.send_json({"id": self._sent, "method": method, "params": parameters})
        async with asyncio.timeout(DEADLINE_S):
            while True:
                answer: dict[str, Any] = json.loads(await self._socket.receive_str())
                if answer.get("method") in _COMPLAINTS:
                    self._note(answer["params"])
                if answer.get("method") == "Network.requestWillBeSent":
                    self.requests.append(answer["params"]["request"]["url"])
                if answer.get("id") == self._sent:
                    if answer.get("error", {}).get("message") == _BETWEEN_PAGES:
                        return {"result": {}}
                    assert "result" in answer, answer
                    return dict(answer["result"])

    def _note(self, event: dict[str, Any]) -> None:
        level = event.get("type") or event.get("entry", {}).get("level", "error")
        if level in ("error", "warning"):
            self.complaints.append(json.dumps(event)[:2000])

    async def value(self, script: str) -> Any:
        """What an expression is in the page. An exception in it fails the test."""
        answer = await self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until an expression is true."""
        async with asyncio.timeout(DEADLINE_S):
            while not (found := await self.value(script)):
                await asyncio.sleep(0.02)
        return found


@asynccontextmanager
async def browser_page(address: str, profile: Path) -> AsyncIterator[Page]:
    """A browser that shows `address`."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *_SWITCHES.split(), f"--user-data-dir={profile}", address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            async with aiohttp.ClientSession() as http, asyncio.timeout(DEADLINE_S * 2):
                socket = await http.ws_connect(await _socket_of(http, profile), max_msg_size=0)
                page = Page(socket)
                await page.until(
                    "location.protocol !== 'about:' && document.readyState === 'complete'"
                )
                yield page
                await socket.close()
        finally:
            browser.terminate()


async def _socket_of(http: aiohttp.ClientSession, profile: Path) -> str:
    """Where the page is to be reached, once the browser has said which port it took."""
    file = profile / "DevToolsActivePort"
    while not (file.exists() and file.read_text().count("\n")):
        await asyncio.sleep(0.02)
    port = int(file.read_text().split("\n")[0])
    while True:
        async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [entry for entry in await answer.json() if entry["type"] == "page"]
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        await asyncio.sleep(0.02)
