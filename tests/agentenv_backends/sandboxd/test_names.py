"""What the name service says to whom, as the C libraries read it."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentenv_backends.sandboxd import names
from agentenv_backends.sandboxd.names import Names

BY_NAME, BY_ID, GROUP_BY_NAME, GROUP_BY_ID, GROUPS_OF = 0, 1, 2, 3, 15
SLOT, OTHER = 200_000, 200_002
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives folders to other users")


@pytest.fixture
def service(tmp_path: Path) -> Names:
    """Two slots, as `users.Users` gives them their folders."""
    (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\nbroken line\n::::::\n")
    (tmp_path / "group").write_text("root:x:0:\nstaff:x:50:root,agent\n")
    folders = []
    for number, uid in enumerate((SLOT, OTHER)):
        door = tmp_path / f"slot-{number}"
        (door / "workspace").mkdir(parents=True)
        os.chown(door / "workspace", uid, uid)
        os.chown(door, 0, uid)
        folders.append(str(door / "workspace"))
    return Names(folders, str(tmp_path))


def user(answer: bytes) -> tuple[str, int, int, str] | None:
    """Name, uid, gid and home."""
    version, found, *sizes = struct.unpack_from("=9i", answer)
    assert version == 2
    if not found:
        return None
    strings = answer[36:].split(b"\0")
    lengths = [sizes[0], sizes[1], *sizes[4:]]
    assert [len(text) + 1 for text in strings[:5]] == lengths
    return strings[0].decode(), sizes[2], sizes[3], strings[3].decode()


def group(answer: bytes) -> tuple[str, int, list[str]] | None:
    version, found, _, _, gid, members = struct.unpack_from("=6i", answer)
    assert version == 2
    if not found:
        return None
    strings = answer[24 + 4 * members :].split(b"\0")
    return strings[0].decode(), gid, [text.decode() for text in strings[2 : 2 + members]]


@needs_root
def test_a_slot_finds_itself_by_name_and_by_id(service: Names, tmp_path: Path) -> None:
    for number, uid in enumerate((SLOT, OTHER)):
        me = ("agent", uid, uid, str(tmp_path / f"slot-{number}" / "workspace"))
        assert user(service.answer(BY_ID, str(uid), uid)) == me
        assert user(service.answer(BY_NAME, "agent", uid)) == me
        assert group(service.answer(GROUP_BY_ID, str(uid), uid)) == ("agent", uid, [])
        assert group(service.answer(GROUP_BY_NAME, "agent", uid)) == ("agent", uid, [])


@needs_root
def test_no_slot_finds_another(service: Names) -> None:
    assert user(service.answer(BY_ID, str(OTHER), SLOT)) is None
    assert group(service.answer(GROUP_BY_ID, str(OTHER), SLOT)) is None


@needs_root
@pytest.mark.parametrize("asker", [0, 65534, 200_001])
def test_who_is_no_slot_finds_what_the_files_say_alone(service: Names, asker: int) -> None:
    assert user(service.answer(BY_NAME, "agent", asker)) is None
    assert user(service.answer(BY_ID, "0", asker)) == ("root", 0, 0, "/root")
    assert user(service.answer(BY_ID, str(SLOT), asker)) is None


@needs_root
def test_users_of_the_image_are_found_as_before(service: Names) -> None:
    assert user(service.answer(BY_NAME, "root", SLOT)) == ("root", 0, 0, "/root")
    assert group(service.answer(GROUP_BY_ID, "50", SLOT)) == ("staff", 50, ["root", "agent"])
    assert user(service.answer(BY_NAME, "nobody-here", SLOT)) is None


@needs_root
def test_groups_of_a_user_are_its_own_and_those_that_list_it(service: Names) -> None:
    answer = service.answer(GROUPS_OF, "agent", SLOT)
    assert struct.unpack("=5i", answer) == (2, 1, 2, SLOT, 50)
    assert struct.unpack("=3i", service.answer(GROUPS_OF, "nobody-here", SLOT)) == (2, 0, 0)


@needs_root
@pytest.mark.parametrize("kind", [4, 11, 12, 17, 99, -1])
def test_other_questions_are_left_to_others(service: Names, kind: int) -> None:
    assert service.answer(kind, "passwd", SLOT) == b""


@pytest.mark.parametrize(
    "request_",
    [struct.pack("=iii", 1, 0, 4), struct.pack("=iii", 2, 0, -1), struct.pack("=iii", 2, 0, 5000)],
)
def test_what_is_no_request_is_refused_at_its_head(request_: bytes) -> None:
    with pytest.raises(ValueError, match="no request"):
        names._is_whole(request_)


@pytest.mark.parametrize("number", ["4294967296", "²", "9" * 5000, "-1", ""])
def test_lines_of_an_image_with_numbers_that_no_kernel_knows_are_passed_over(
    tmp_path: Path, number: str
) -> None:
    (tmp_path / "passwd").write_text(f"odd:x:{number}:0::/:/bin/sh\nlast:x:7:{number}::/:/bin/sh\n")
    (tmp_path / "group").write_text(f"odd:x:{number}:last\nlast:x:8:last\n")
    service = Names([], str(tmp_path))
    assert user(service.answer(BY_NAME, "odd", 1)) is None
    assert user(service.answer(BY_NAME, "last", 1)) == ("last", 7, 7, "/")
    assert group(service.answer(GROUP_BY_NAME, "odd", 1)) is None
    assert service.answer(GROUPS_OF, "last", 1)


def connection_of(uid: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of one that this user has made."""
    os.seteuid(uid)
    try:
        return socket.socketpair()
    finally:
        os.seteuid(0)


@needs_root
def test_a_slot_that_wants_more_than_its_share_loses_its_own_places_and_nobody_elses(
    service: Names,
) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        serving = names._Service(listener, service)
        mine, *floods = [connection_of(SLOT), *(connection_of(OTHER) for _ in range(200))]
        for asker, served in (mine, *floods):
            stack.callback(asker.close)
            stack.callback(served.close)
            serving._add(served)
        assert floods[0][0].recv(1) == b""  # it has waited longest, of its user's
        mine[0].sendall(struct.pack("=iii", 2, BY_NAME, 6) + b"agent\0")
        serving._read(mine[1].fileno())
        found = user(mine[0].recv(4096))
        assert found is not None
        assert found[:2] == ("agent", SLOT)
