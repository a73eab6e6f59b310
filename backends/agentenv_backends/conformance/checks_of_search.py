"""Editing files, and finding them and what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentenv_backends.conformance.checks import check, expect, hold, refused
from agentenv_backends.requests import EditRequest, GlobRequest, GrepRequest, ReadRequest
from agentenv_backends.results import (
    EditResult,
    FailureKind,
    GlobResult,
    GrepResult,
    OpFailure,
    ReadResult,
)

if TYPE_CHECKING:
    from agentenv_backends.conformance.checks import Subject

_TREE = """
mkdir -p src/deep/er .git docs; printf 'one\\nneedle two\\nthree\\n' > src/a.py; echo needle > src/deep/er/b.py
echo needle > docs/c.md; echo needle > .git/d; printf 'needle\\0' > src/binary; ln -s /etc etc; ln -s src/a.py link.py
"""


@check("search")
async def an_edit_replaces_exactly_one_place_and_keeps_the_rest(subject: Subject) -> None:
    """Line ends, mode and a missing last line end included."""
    async with subject.slot() as slot:
        await subject.output(slot, r"printf 'a\r\nold\r\nlast' > f; chmod 751 f")
        edited = expect(EditResult, await subject.ask(slot, EditRequest("f", "old", "new")))
        hold(edited.replacements == 1, f"{edited.replacements} replacements")
        read = expect(ReadResult, await subject.ask(slot, ReadRequest("f")))
        hold(read.content == b"a\r\nnew\r\nlast", f"the file is {read.content!r}")
        hold((await subject.output(slot, "stat -c %a f")).strip() == "751", "its mode changed")


@check("search")
async def an_edit_that_is_not_clear_is_refused_and_changes_nothing(subject: Subject) -> None:
    """Absent, twice, no change, binary, missing, outside."""
    async with subject.slot() as slot:
        await subject.output(slot, "printf 'x x' > f; printf 'x\\0' > b")
        ask = subject.ask
        refused(await ask(slot, EditRequest("f", "y", "z")), FailureKind.NO_MATCH)
        refused(await ask(slot, EditRequest("f", "x", "z")), FailureKind.SEVERAL_MATCHES)
        for old, new in (("x", "x"), ("", "z")):
            refused(await ask(slot, EditRequest("f", old, new)), FailureKind.BAD_REQUEST)
        refused(await ask(slot, EditRequest("b", "x", "z")), FailureKind.NOT_TEXT)
        refused(await ask(slot, EditRequest("none", "x", "z")), FailureKind.NOT_FOUND)
        outside = await ask(slot, EditRequest("/etc/passwd", "root", "z"))
        refused(outside, FailureKind.OUTSIDE_WORKSPACE)
        hold(await subject.output(slot, "cat f") == "x x", "the file changed")
        both = await ask(slot, EditRequest("f", "x", "z", replace_all=True))
        hold(expect(EditResult, both).replacements == 2, f"got {both}")


@check("search")
async def patterns_match_names_and_paths(subject: Subject) -> None:
    """At any depth, without following links."""
    expected = {
        "*.py": ("link.py", "src/a.py", "src/deep/er/b.py"),
        "src/*.py": ("src/a.py",),
        "src/**/*.py": ("src/a.py", "src/deep/er/b.py"),
        "**/er/*": ("src/deep/er/b.py",),
        "passwd": (),
    }
    async with subject.slot() as slot:
        await subject.output(slot, _TREE)
        for pattern, paths in expected.items():
            found = expect(GlobResult, await subject.ask(slot, GlobRequest(pattern)))
            hold(found.paths == paths, f"{pattern} found {found.paths}")
        few = expect(GlobResult, await subject.ask(slot, GlobRequest("*", max_results=2)))
        hold(len(few.paths) == 2 and few.truncated, "the bound is not kept")


@check("search")
async def lines_are_found_with_their_place_and_surroundings(subject: Subject) -> None:
    """Binary files and links to elsewhere are left out."""
    async with subject.slot() as slot:
        await subject.output(slot, _TREE)
        request = GrepRequest("needle", include=("*.py",), context_lines=1)
        found = expect(GrepResult, await subject.ask(slot, request))
        places = [(match.path, match.line) for match in found.matches]
        hold(("src/a.py", 2) in places and ("src/deep/er/b.py", 1) in places, f"found {places}")
        hold(not any(path.startswith("etc/") for path, _ in places), "a link was followed")
        match = next(match for match in found.matches if match.path == "src/a.py")
        hold((match.before, match.after) == (("one",), ("three",)), f"around it: {match}")
        refused(await subject.ask(slot, GrepRequest("(")), FailureKind.BAD_REQUEST)


@check("search")
async def a_pattern_that_takes_for_ever_ends_at_its_deadline(subject: Subject) -> None:
    """And the slot serves on."""
    async with subject.slot() as slot:
        await subject.output(slot, f"echo {'a' * 60}b > f")
        endless = await subject.ask(slot, GrepRequest("(a+)+$", timeout_s=2))
        hold(isinstance(endless, GrepResult | OpFailure), f"got {endless}")
        hold(await subject.output(slot, "echo hi") == "hi\n", "the slot does not serve on")
