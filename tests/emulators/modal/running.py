"""The emulated server as tests use it: a process of its own, which can be told to fail, killed, and started again."""

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.emulators.modal.leftovers import kill_processes_of, processes_of

ROOT = Path(__file__).parents[3]
_PATIENCE_S = 60.0


class EmulatedModal:
    """`with EmulatedModal() as modal:`; then `modal.environment()` is what a client has to have set.

    Its calls block for milliseconds: it is another process that answers them.
    """

    def __init__(self) -> None:
        self.token_id = f"ak-{secrets.token_hex(8)}"
        self.token_secret = f"as-{secrets.token_hex(8)}"
        self.folder = Path(tempfile.mkdtemp(prefix="emulated-modal-"))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        return {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self.port}",
            "MODAL_TOKEN_ID": self.token_id,
            "MODAL_TOKEN_SECRET": self.token_secret,
            "MODAL_CONFIG_PATH": os.devnull,
        }

    def start(self) -> None:
        """Also after `kill`: on the same port, with apps, images and secrets as they were, and no sandbox."""
        self.folder.mkdir(exist_ok=True)
        arguments = [str(self.folder), self.token_id, self.token_secret, str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.emulators.modal", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            bufsize=0,
        )
        self.port = self._hear()["port"]

    def kill(self) -> None:
        """As a machine that is switched off: its sandboxes are gone with it."""
        assert self._process is not None
        self._process.kill()
        self._end(self._process)
        kill_processes_of(self.folder)
        for left in self.folder.glob("sb-*"):
            shutil.rmtree(left, ignore_errors=True)

    def stop(self) -> None:
        """End it and its sandboxes in order."""
        if self._process is not None:
            self._end(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def tell(self, do: str, **order: Any) -> Any:
        """Give an order, see `__main__`, and return the answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        heard = self._hear()
        assert "error" not in heard, heard
        return heard["answer"]

    def fault(self, rpc: str = "*", status: str = "", **more: Any) -> None:
        """Make calls of `rpc` (`*`: of all) fail with a gRPC status, or be late; see `rpc.Fault`."""
        self.tell("fault", rpc=rpc, status=status, **more)

    def heal(self) -> None:
        """No more faults."""
        self.tell("heal")

    def calls(self) -> dict[str, int]:
        """How often each RPC was called."""
        answer: dict[str, int] = self.tell("calls")
        return answer

    def sandboxes(self, *, alive: bool = True) -> list[dict[str, Any]]:
        """Those that live, or all there ever were."""
        found: list[dict[str, Any]] = self.tell("sandboxes")
        return [each for each in found if each["alive"] or not alive]

    def processes(self) -> list[int]:
        """Of this machine, those that run in a sandbox."""
        return processes_of(self.folder)

    def _hear(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE_S)
        line = self._process.stdout.readline() if ready else b""
        assert line, "the emulated server does not answer"
        return json.loads(line)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
