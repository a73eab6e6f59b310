"""Reading, writing, listing and packing files."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from typing import TYPE_CHECKING

from agentenv_backends.conformance.checks import check, expect, hold, refused
from agentenv_backends.requests import (
    ArchiveRequest,
    ListRequest,
    ReadRequest,
    ShellRequest,
    WriteRequest,
)
from agentenv_backends.results import (
    ArchiveResult,
    FailureKind,
    ListResult,
    OpFailure,
    ReadResult,
    WriteResult,
)

if TYPE_CHECKING:
    from agentenv_backends.base import Slot
    from agentenv_backends.conformance.checks import Subject

_EVERY_BYTE = bytes(range(256))
_OUTSIDE = (
    "../outside",
    "a/../../b",
    "/etc/passwd",
    "//etc/passwd",
    "/workspace2/x",
    "../" * 40 + "etc/passwd",
)
_ODD_NAMES = (
    "with space",
    "-leading-dash",
    "new\nline",
    "quote'\"$(id)`",
    "ünïcödé-✓",
    "n" * 255,
    "...",
    "back\\slash",
    "~",
    "%2e%2e",
)


async def _write(subject: Subject, slot: Slot, path: str, content: bytes, **options: bool) -> None:
    result = expect(
        WriteResult,
        await subject.ask(slot, WriteRequest(path, content, options.get("append", False))),
    )
    hold(result.bytes_written == len(content), f"{result.bytes_written} of {len(content)} written")


async def _read(subject: Subject, slot: Slot, path: str, max_bytes: int = 8 << 20) -> bytes:
    request = ReadRequest(path, max_bytes=max_bytes)
    return expect(ReadResult, await subject.ask(slot, request)).content


@check("files")
async def what_is_written_is_what_is_read(subject: Subject) -> None:
    """Text, every byte, nothing, and megabytes."""
    contents = {
        "text": "héllo\n".encode(),
        "binary": _EVERY_BYTE * 40,
        "empty": b"",
        "large": _EVERY_BYTE * 12_000,
    }
    async with subject.slot() as slot:
        for name, content in contents.items():
            await _write(subject, slot, name, content)
            hold(await _read(subject, slot, name) == content, f"the {name} file came back changed")


@check("files")
async def commands_and_file_requests_see_the_same_files(subject: Subject) -> None:
    """Both ways."""
    async with subject.slot() as slot:
        await _write(subject, slot, "from_request", b"one\n")
        hold(await subject.output(slot, "cat from_request") == "one\n", "a command reads otherwise")
        await subject.output(slot, "echo two > from_command; echo three >> from_request")
        hold(await _read(subject, slot, "from_command") == b"two\n", "a request reads otherwise")
        hold(
            await _read(subject, slot, "from_request") == b"one\nthree\n",
            "a command cannot write to a file that a request made",
        )


@check("files")
async def writing_replaces_appends_and_makes_parents(subject: Subject) -> None:
    """And an absolute path below the workspace is as good as a relative one."""
    async with subject.slot() as slot:
        await _write(subject, slot, "a/b/c", b"first, and longer")
        await _write(subject, slot, "a/b/c", b"second")
        await _write(subject, slot, f"{slot.workspace_dir}/a/b/c", b", third", append=True)
        hold(await _read(subject, slot, "a/b/c") == b"second, third", "not what was written last")


@check("files")
async def a_read_says_how_much_there_is_and_hashes_on_request(subject: Subject) -> None:
    """Limits and offsets."""
    content = _EVERY_BYTE * 10
    async with subject.slot() as slot:
        await _write(subject, slot, "f", content)
        request = ReadRequest("f", offset=100, max_bytes=50, with_sha256=True)
        part = expect(ReadResult, await subject.ask(slot, request))
        hold(part.content == content[100:150], "offset and limit are not kept")
        hold(part.truncated and part.file_size == len(content), "the rest is not told of")
        hold(part.sha256 == hashlib.sha256(content).hexdigest(), "the hash is another one")


@check("files")
async def each_mistake_has_its_own_kind(subject: Subject) -> None:
    """Missing, a folder, below a file, without permission."""
    async with subject.slot() as slot:
        await subject.output(slot, "mkdir d locked && echo x > f && echo x > locked/f && mkfifo p")
        await subject.output(slot, "echo secret > closed && chmod 0 closed && chmod 0 locked")
        ask = subject.ask
        refused(await ask(slot, ReadRequest("missing")), FailureKind.NOT_FOUND)
        refused(await ask(slot, ReadRequest("d")), FailureKind.IS_A_DIRECTORY)
        refused(await ask(slot, ReadRequest("f/x")), FailureKind.NOT_A_DIRECTORY)
        refused(await ask(slot, ReadRequest("closed")), FailureKind.PERMISSION_DENIED)
        refused(await ask(slot, ReadRequest("locked/f")), FailureKind.PERMISSION_DENIED)
        refused(await ask(slot, ReadRequest("p")), FailureKind.NOT_A_FILE)
        refused(await ask(slot, WriteRequest("d", b"x")), FailureKind.IS_A_DIRECTORY)
        refused(await ask(slot, WriteRequest("f/x", b"x")), FailureKind.NOT_A_DIRECTORY)
        refused(await ask(slot, WriteRequest("locked/g", b"x")), FailureKind.PERMISSION_DENIED)
        refused(await ask(slot, ListRequest("missing")), FailureKind.NOT_FOUND)
        refused(await ask(slot, ReadRequest("nul\0byte")), FailureKind.BAD_REQUEST)


@check("files")
async def no_path_leads_out_of_the_workspace(subject: Subject) -> None:
    """Neither by its spelling nor by a link, dangling or not."""
    outside = FailureKind.OUTSIDE_WORKSPACE
    async with subject.slot() as slot:
        await subject.output(
            slot,
            "mkdir a; ln -s /etc/passwd link; ln -s /tmp/nowhere dangling; ln -s / root;"
            "ln -s ../.. up; ln -s ring ring",
        )
        for path in (*_OUTSIDE, "link", "root/etc/passwd", "up/x", "/proc/self/environ"):
            refused(await subject.ask(slot, ReadRequest(path)), outside)
        for path in (*_OUTSIDE, "link", "dangling", "root/tmp/x", "up/x"):
            refused(await subject.ask(slot, WriteRequest(path, b"x")), outside)
        for path in ("..", "/", "root", "up"):
            refused(await subject.ask(slot, ListRequest(path)), outside)
            refused(await subject.ask(slot, ArchiveRequest(path)), outside)
        ring = await subject.ask(slot, ReadRequest("ring"))
        hold(isinstance(ring, OpFailure), f"a ring of links was read: {ring}")


@check("files", needs=("stateful_terminals",))
async def a_link_that_is_swapped_meanwhile_never_leads_outside(subject: Subject) -> None:
    """Files are asked for while a background job swaps a folder for a link to `/etc`."""
    swap = "(while :; do ln -sfn real x; ln -sfn /etc x; done) &"
    async with subject.slot() as slot:
        await subject.output(slot, "mkdir -p real; echo mine > real/passwd; ln -s real x")
        await subject.ask(slot, ShellRequest(swap))
        for _ in range(2000):
            answer = await subject.ask(slot, ReadRequest("x/passwd"))
            if isinstance(answer, ReadResult):
                hold(answer.content == b"mine\n", "the host's /etc/passwd was read")
            await subject.ask(slot, WriteRequest("x/conformance", b"x"))
        planted = await subject.run(slot, "ls /etc/conformance")
        hold(planted.exit_code != 0, "a file was written outside")


@check("files")
async def odd_names_work_and_survive_a_listing(subject: Subject) -> None:
    """New lines, quotes, 255 bytes, bytes that are no UTF-8."""
    async with subject.slot() as slot:
        for name in _ODD_NAMES:
            await _write(subject, slot, f"d/{name}", name.encode())
        await subject.output(
            slot, r"echo raw > $'d/\xff\xfe'" if await _has_bash(subject, slot) else ":"
        )
        listed = expect(ListResult, await subject.ask(slot, ListRequest("d")))
        names = {entry.path.removeprefix("d/") for entry in listed.entries}
        hold(names >= set(_ODD_NAMES), f"not listed: {set(_ODD_NAMES) - names}")
        for name in names - set(_ODD_NAMES):
            hold(await _read(subject, slot, f"d/{name}") == b"raw\n", f"{name!r} cannot be read")


async def _has_bash(subject: Subject, slot: Slot) -> bool:
    return bool((await subject.output(slot, "echo $BASH_VERSION")).strip())


@check("files")
async def listings_are_sorted_bounded_and_follow_no_links(subject: Subject) -> None:
    """Kinds and sizes are right as well."""
    async with subject.slot() as slot:
        await subject.output(slot, "mkdir -p t/d; echo 12345 > t/d/f; ln -s d t/l; mkfifo t/p")
        found = expect(ListResult, await subject.ask(slot, ListRequest("t", recursive=True)))
        kinds = [(entry.path, entry.kind) for entry in found.entries]
        expected = [("t/d", "directory"), ("t/d/f", "file"), ("t/l", "link"), ("t/p", "other")]
        hold(kinds == expected, f"listed {kinds}")
        hold(found.entries[1].size == 6, f"its size is {found.entries[1].size}")
        few = expect(ListResult, await subject.ask(slot, ListRequest("t", True, max_entries=2)))
        hold(len(few.entries) == 2 and few.truncated, "the bound on entries is not kept")


@check("files")
async def an_archive_holds_what_is_there_with_links_as_links(subject: Subject) -> None:
    """And is refused beyond its bounds."""
    async with subject.slot() as slot:
        await subject.output(
            slot, "mkdir -p t/d; echo x > t/d/f; ln -s /etc/passwd t/l; mkfifo t/p"
        )
        packed = expect(ArchiveResult, await subject.ask(slot, ArchiveRequest("t")))
        with tarfile.open(fileobj=io.BytesIO(packed.content)) as archive:
            members = {member.name.rstrip("/"): member for member in archive.getmembers()}
        names = [name for name in members if name.endswith(("d/f", "/l", "/p"))]
        hold(any(name.endswith("d/f") for name in names), f"the file is missing: {sorted(members)}")
        links = [member for name, member in members.items() if name.endswith("/l") or name == "l"]
        hold(links and links[0].issym(), "the link is not a link")
        hold(not any(name.endswith("/p") for name in names), "the pipe was packed")
        await subject.output(slot, "head -c 300000 /dev/urandom > t/big")
        big = await subject.ask(slot, ArchiveRequest("t", max_bytes=100_000))
        refused(big, FailureKind.TOO_LARGE)


@check("files")
async def two_writers_leave_one_whole_content(subject: Subject) -> None:
    """A file appears whole or not at all."""
    contents = [bytes([byte]) * 200_000 for byte in b"abcdefgh"]
    async with subject.slot() as slot:
        await asyncio.gather(*(_write(subject, slot, "f", content) for content in contents))
        hold(await _read(subject, slot, "f") in contents, "the file is a mix of two contents")
        left = await subject.output(slot, "ls -A")
        hold(left.split() == ["f"], f"something else was left: {left!r}")


@check("files")
async def special_files_are_refused_without_waiting(subject: Subject) -> None:
    """A pipe that nobody writes to, a sparse file of 100 GB."""
    async with subject.slot() as slot:
        await subject.output(slot, "mkfifo p; truncate -s 100G sparse 2>/dev/null || :> sparse")
        async with asyncio.timeout(20):
            refused(await subject.ask(slot, ReadRequest("p")), FailureKind.NOT_A_FILE)
            head = expect(
                ReadResult, await subject.ask(slot, ReadRequest("sparse", max_bytes=1000))
            )
        hold(len(head.content) <= 1000, "more was read than asked for")


@check("files", needs=("disk_limit",))
async def a_full_disk_is_told_and_freed_space_is_usable(subject: Subject) -> None:
    """The old content of a file that cannot be replaced stays."""
    async with subject.slot() as slot:
        await _write(subject, slot, "kept", b"old")
        filled = await subject.run(slot, "cat /dev/zero > full", timeout_s=60)
        hold(filled.exit_code != 0, "there is no end to the disk")
        refused(await subject.ask(slot, WriteRequest("kept", b"n" * 500_000)), FailureKind.NO_SPACE)
        hold(await _read(subject, slot, "kept") == b"old", "the old content is lost")
        await subject.output(slot, "rm full")
        await _write(subject, slot, "kept", b"new")
