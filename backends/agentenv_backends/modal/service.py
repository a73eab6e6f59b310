"""Our calls to Modal, through its own client, each with a deadline of ours, and its errors in our words.

The client waits for ever in places, and tries to connect for a minute. What it retries by itself stays within the
deadline; what is worth another try after that says so (`transient`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, TypeVar

from agentenv_backends._aio import bounded
from agentenv_backends.errors import BackendUnavailableError, EngineError

try:
    import modal
    from modal import exception as theirs
except ModuleNotFoundError:
    raise
except Exception as error:  # its file of settings is read as it is loaded
    raise BackendUnavailableError(
        f"Modal's client cannot be loaded: {' '.join(str(error).split())}"
    ) from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
    from pathlib import Path

_log = logging.getLogger(__name__)
T = TypeVar("T")

CALL_S = 20.0
"""Deadline of a call that should take a moment."""
CONNECT_S = 10.0
LOOK_S = 3.0
_CLOSE_S = 5.0
_PAUSES_S = (0.2, 0.5, 1.0)
_TRANSIENT = (
    theirs.ServiceError,
    theirs.InternalError,
    theirs.ResourceExhaustedError,
    theirs.ConnectionError,
    theirs.TimeoutError,
    OSError,
    TimeoutError,
)
_HINTS: tuple[tuple[type[BaseException], str], ...] = (
    (
        theirs.AuthError,
        "set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET to a token of yours, or run `modal token new`",
    ),
    (theirs.PermissionDeniedError, "the token's owner may not do that in this workspace"),
    (
        theirs.InvalidError,
        "look at cpus, sandbox_memory_mb, gpu, region, cloud, max_lifetime_s and idle_timeout_s",
    ),
)


class ModalError(EngineError):
    """Modal did not do what it was asked to. `transient`: the same call may do better in a moment."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message, transient=isinstance(cause, _TRANSIENT))
        self.exists = isinstance(cause, theirs.AlreadyExistsError)
        self.is_missing = isinstance(cause, theirs.NotFoundError)
        self.is_busy = isinstance(cause, theirs.ResourceExhaustedError)
        """Too much was asked for at once, or is there already: only time helps."""


def as_modal_error(what: str, error: Exception) -> ModalError:
    """`error`, which the client raised while it should do `what`, in our words."""
    kind = type(error).__name__
    said = str(error).strip() or kind
    if isinstance(error, TimeoutError) and not isinstance(error, theirs.Error):
        said = said if said != kind else "it took too long"
    elif isinstance(error, OSError | theirs.ConnectionError):
        said = f"it cannot be reached ({said})"
    hint = next((hint for kind_, hint in _HINTS if isinstance(error, kind_)), "")
    message = f"{server_name()} did not {what}: {said}"
    return ModalError(f"{message.rstrip('.')}{': ' + hint if hint else ''}", error)


def server_name() -> str:
    """Modal, and where it was looked for when that is not the usual place."""
    url = os.environ.get("MODAL_SERVER_URL")
    return f"Modal at {url} (MODAL_SERVER_URL)" if url else "Modal"


async def tried(call: Callable[[], Awaitable[T]]) -> T:
    """What `call()` gives, tried a few times while it fails in a way that may pass. For calls that may be repeated."""
    for pause_s in _PAUSES_S:
        try:
            return await call()
        except ModalError as error:
            if not error.transient or isinstance(error.__cause__, TimeoutError):
                raise
            _log.debug("again in %g s: %s", pause_s, error)
        await asyncio.sleep(pause_s)
    return await call()


class Service:
    """One connected client. `open` it first, `close` it at the end; both are idempotent."""

    def __init__(self) -> None:
        self._client: Any = None
        self._is_ours = True
        """Else it is the process's own, and others may use it."""
        self._opening: asyncio.Task[Any] | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._client is not None

    async def open(self) -> None:
        """Connect, and try the token. Raises `ModalError` within seconds."""
        if self._opening is None or (self._opening.done() and self._client is None):
            self._opening = asyncio.create_task(self._connected())
        # Not cancelled with us: the client forgets a connection that it is about to make.
        self._client = await asyncio.shield(self._opening)

    async def _connected(self) -> Any:
        try:
            return await bounded(self._try_token(), CONNECT_S, "connecting")
        except TimeoutError as error:
            raise ModalError(
                f"{server_name()} cannot be reached: no connection within {CONNECT_S:g} s; look at MODAL_SERVER_URL, "
                "at proxies (HTTPS_PROXY, NO_PROXY) and at the network",
                error,
            ) from error
        except ModalError:
            raise
        except Exception as error:
            raise as_modal_error("open a session", error) from error

    async def _try_token(self) -> Any:
        client, self._is_ours = await _client()
        try:
            await tried(lambda: self.call("answer", client.hello.aio(), 2 * CONNECT_S))
        except BaseException:
            await self._closed(client)
            raise
        return client

    async def close(self) -> None:
        """Let go of its connections."""
        opening, self._opening, self._client = self._opening, None, None
        if opening is None:
            return
        await asyncio.wait({opening}, timeout=_CLOSE_S)
        if opening.cancel() or opening.cancelled() or opening.exception() is not None:
            return
        await self._closed(opening.result())

    async def _closed(self, client: Any) -> None:
        if not self._is_ours:
            return
        try:
            await bounded(client.close.aio(), _CLOSE_S, "closing Modal's client")
        except (theirs.Error, OSError, TimeoutError) as error:
            _log.debug("connections to Modal do not end: %s", error)

    async def call(self, what: str, call: Coroutine[Any, Any, T], timeout_s: float = CALL_S) -> T:
        """Await a call of the client for at most `timeout_s`. Raises `ModalError`."""
        try:
            return await bounded(call, timeout_s, "it")
        except Exception as error:
            raise as_modal_error(what, error) from error

    # --- what there is to be before sandboxes ---------------------------------------------------------

    async def find_app(self, name: str, environment_name: str | None, *, make: bool = True) -> Any:
        """The app of that name, made if there is none and `make`. Raises `ModalError`."""
        looking = modal.App.lookup.aio(
            name,
            client=self._client,
            environment_name=environment_name,
            create_if_missing=make,
        )
        return await self.call(f"find the app {name!r}", looking)

    async def apps(self, environment_name: str | None) -> list[str]:
        """The ids of those apps of an environment (None: the configured one) that are not stopped."""
        if environment_name is None:
            environment = modal.Environment.from_context(client=self._client)
        else:
            environment = modal.Environment.from_name(environment_name, client=self._client)
        found = await self.call("list the apps", environment.apps.list.aio())
        return [app.app_id for app in found if app.app_id is not None]

    async def build_image(
        self, dockerfile: Path, context: Path | None, app: Any, timeout_s: float
    ) -> Any:
        """An image that sandboxes can be made of, built from a Dockerfile and the files in `context`."""
        image = (
            modal.Image.from_dockerfile(dockerfile, context_dir=context)
            if context is not None
            else modal.Image.from_dockerfile(
                dockerfile, context_dir=dockerfile.parent, ignore=["**"]
            )
        )
        await self.call(f"build {dockerfile} (dockerfile)", image.build.aio(app), timeout_s)
        return image

    async def provide_image(self, name: str, app: Any, timeout_s: float) -> Any:
        """An image that sandboxes can be made of: by its id, or pulled from a registry."""
        if name.startswith("im-"):
            image = modal.Image.from_id(name)
            building = image.hydrate.aio(client=self._client)
        else:
            image = modal.Image.from_registry(name)
            building = image.build.aio(app)
        await self.call(f"provide image {name!r} (image)", building, timeout_s)
        return image

    async def find_secret(self, name: str, environment_name: str | None) -> Any:
        """The secret of that name."""
        secret = modal.Secret.from_name(name, environment_name=environment_name)
        await self.call(
            f"find the secret {name!r} (secrets)", secret.hydrate.aio(client=self._client)
        )
        return secret

    # --- sandboxes ------------------------------------------------------------------------------------

    async def create(self, options: Mapping[str, Any], timeout_s: float) -> Any:
        """A new sandbox. Raises `ModalError`, of which `exists` means that there is one of that name."""
        creating = modal.Sandbox.create.aio(**options, client=self._client)
        return await self.call(f"create sandbox {options['name']}", creating, timeout_s)

    async def find(self, app_name: str, name: str, environment_name: str | None) -> Any:
        """The sandbox of that name, which runs. Raises `ModalError`, of which `is_missing` means there is none."""
        finding = modal.Sandbox.from_name.aio(
            app_name, name, environment_name=environment_name, client=self._client
        )
        return await self.call(f"find sandbox {name}", finding)

    async def list(self, app_id: str, tags: Mapping[str, str]) -> list[Any]:
        """Sandboxes that run and have these tags."""

        async def all_of(found: AsyncIterator[Any]) -> list[Any]:
            return [sandbox async for sandbox in found]

        listing = modal.Sandbox.list.aio(app_id=app_id, tags=dict(tags), client=self._client)
        return await self.call("list sandboxes", all_of(listing))

    async def tags(self, sandbox: Any) -> dict[str, str]:
        """What a sandbox was marked with."""
        return dict(
            await self.call(f"tell the tags of {sandbox.object_id}", sandbox.get_tags.aio())
        )

    async def run(self, sandbox: Any, command: Iterable[str], timeout_s: float) -> Any:
        """Start a command in a sandbox, with byte streams to it."""
        running = sandbox.exec.aio(*command, text=False)
        return await self.call(f"start a command in {sandbox.object_id}", running, timeout_s)

    async def working_dir(self, sandbox: Any, timeout_s: float) -> str:
        """Where commands in a sandbox start that was created without a working directory: the image's own."""
        process = await self.run(sandbox, ("sh", "-c", "pwd -P"), timeout_s)
        what = f"tell the working directory of {sandbox.object_id}"
        said = await self.call(what, process.stdout.read.aio(), timeout_s)
        return bytes(said).decode("utf-8", "replace").rstrip("\n")

    async def how_it_ended(self, sandbox: Any) -> str | None:
        """Why a sandbox is no more, as a sentence; None while it runs. Raises `ModalError` when that cannot be told."""
        what = f"tell the state of {sandbox.object_id}"
        try:
            code = await self.call(what, sandbox.poll.aio(), LOOK_S)
            if code is None:
                return None
            # Returns at once, and tells by its errors what the code does not.
            await bounded(sandbox.wait.aio(), LOOK_S, "it")
        except theirs.SandboxTimeoutError:
            return "its lifetime is over"
        except theirs.SandboxTerminatedError:
            return "it was terminated from outside"
        except ModalError as error:
            if error.is_missing:
                return "it is not known any more"
            raise
        except (theirs.Error, OSError, TimeoutError):
            _log.debug("%s ended, and did not say how", sandbox.object_id, exc_info=True)
        if code == _TIMED_OUT:
            return "its lifetime is over"
        if code == _KILLED:
            return "it was killed (137), as by the kernel when its memory runs out: see sandbox_memory_mb"
        return f"it ended with code {code}"

    async def terminate(self, sandbox: Any, timeout_s: float) -> None:
        """End a sandbox and return when it has ended."""
        ending = sandbox.terminate.aio(wait=True)
        try:
            await self.call(f"terminate {sandbox.object_id}", ending, timeout_s)
        except ModalError as error:
            # It had ended already, whichever way.
            if not error.is_missing and not isinstance(error.__cause__, theirs.SandboxTimeoutError):
                raise

    async def let_go(self, sandbox: Any) -> None:
        """Drop our connection to a sandbox, which is not called again."""
        try:
            await self.call(f"let go of {sandbox.object_id}", sandbox.detach.aio(), _CLOSE_S)
        except ModalError as error:
            _log.debug("%s", error)


_TIMED_OUT, _KILLED = 124, 137


def has_token() -> bool:
    """Whether a token is configured, in variables or in the client's file."""
    return all(_token())


def _token() -> tuple[Any, Any]:
    from modal.config import config  # noqa: PLC0415 - reads files when it is loaded

    return config.get("token_id"), config.get("token_secret")


async def _client() -> tuple[Any, bool]:
    """A client of our own where there is a plain token, else the one of the process; and whether it is ours."""
    token = _token()
    if all(token):
        return await modal.Client.from_credentials.aio(*token), True
    return await modal.Client.from_env.aio(), False
