"""The service that tests of the Modal backend run against: an emulated one, or with `--modal-live` the real one.

    from tests.modal_service import MODAL, needs_modal

    pytestmark = [pytest.mark.sandbox, needs_modal]

The real one is Modal's own, found as its client finds it; what it is asked to do costs money. Whatever needs a fault
runs against an emulated one only.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.emulators.modal.running import EmulatedModal

if TYPE_CHECKING:
    from collections.abc import Iterator

MODAL: dict[str, Any] = {
    "type": "modal",
    "app_name": "agentenv-tests",
    "memory_mb": 128,
    "acquire_timeout_s": 120,
}
"""A small modal backend, as settings."""


def add_option(parser: pytest.Parser) -> None:
    """Make the option known."""
    parser.addoption(
        "--modal-live",
        action="store_true",
        help="run tests of the Modal backend against Modal itself, with your token (costs money)",
    )


def why_no_emulated_modal() -> str:
    """The reason why there is none here; empty when there can be one. In continuous integration that is a failure."""
    reason = _what_is_missing()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"no emulated Modal in continuous integration: {reason}")
    return reason


def _what_is_missing() -> str:
    try:
        import modal  # noqa: F401
    except ModuleNotFoundError:
        return "the extra modal is not installed"
    return "" if os.geteuid() == 0 else "the emulated service makes sandboxes as root"


@pytest.fixture(scope="session")
def emulated_modal() -> Iterator[EmulatedModal]:
    """A server that all tests of a session share, without faults."""
    if reason := why_no_emulated_modal():
        pytest.skip(reason)
    with EmulatedModal() as server:
        yield server


@pytest.fixture(scope="session")
def modal_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment variables of a client; none for the real service, which it finds by itself."""
    if request.config.getoption("--modal-live"):
        return {}
    server: EmulatedModal = request.getfixturevalue("emulated_modal")
    return server.environment()


@pytest.fixture(scope="module")
def modal_service(modal_settings: dict[str, str]) -> Iterator[None]:
    """For the tests of a module, Modal's client finds the service."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in modal_settings.items():
            patch.setenv(name, value)
        yield


needs_modal = pytest.mark.usefixtures("modal_service")
