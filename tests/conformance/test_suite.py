"""The conformance suite itself: it finds what is broken, and says what it did not check."""

import re

import pytest

from agentenv_backends.base import Capabilities
from agentenv_backends.conformance import CHECKS, run_checks

FINDS = {
    "Forgetful": "a slot handed out is as good as new",
    "Merging": "output error output and exit code stay apart",
    "Raw": "a command over its deadline is killed and keeps what it wrote",
    "Twice": "nothing runs twice whatever is cancelled",
    "Open": "no path leads out of the workspace",
    "Torn": "two writers leave one whole content",
    "Merciful": "killing the processes of a slot leaves it usable",
    "Careless": "a released slot can no longer be used",
}


def _named(name: str):
    return [check for check in CHECKS if check.name == name]


@pytest.mark.sandbox
@pytest.mark.parametrize(("kind", "name"), FINDS.items(), ids=list(FINDS))
async def test_a_backend_that_breaks_a_promise_is_found_out(kind, name):
    factory = "tests.conformance.broken:make"
    sound = await run_checks(factory, {"kind": "Sound"}, checks=_named(name))
    broken = await run_checks(factory, {"kind": kind}, checks=_named(name))
    assert sound.passed, sound.text()
    assert [outcome.status for outcome in broken.outcomes] == ["broken"]
    assert broken.outcomes[0].detail


async def test_a_capability_that_is_not_declared_is_told_and_not_passed_over():
    from agentenv_backends.conformance import checks, running

    class Backend:
        capabilities = Capabilities("none", False, False, False, False)

    subject = checks.Subject(Backend(), "m:f", {}, Backend)  # type: ignore[arg-type]
    check = next(check for check in CHECKS if "snapshot" in check.needs)
    outcome = await running.run_check(check, subject)
    assert outcome.status == "not offered"
    assert "snapshot" in running.Report((outcome,)).text()


async def test_a_factory_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=re.escape("no_such_module:make")):
        await run_checks("no_such_module:make")


def test_every_check_has_a_sentence_for_a_name_and_an_explanation():
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))
    assert all(check.run.__doc__ for check in CHECKS)
    assert {check.group for check in CHECKS} == {
        "commands", "confinement", "files", "life", "limits", "search", "snapshots", "terminals",
    }  # fmt: skip
