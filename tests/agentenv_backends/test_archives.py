"""Archives of snapshots: a bounded part in memory, the rest in files, and room given back."""

import os

from agentenv_backends._archives import ArchiveStore


async def test_what_does_not_fit_goes_to_a_nameless_file_and_room_comes_back():
    store = ArchiveStore(10)
    first, second = await store.put(b"x" * 8), await store.put(b"y" * 8)
    assert (first.content is None, second.content is None) == (False, True)
    assert (await store.get(first), await store.get(second)) == (b"x" * 8, b"y" * 8)
    assert second.file is not None
    assert os.fstat(second.file.fileno()).st_nlink == 0
    for archive in (first, second, first):
        store.drop(archive)
    assert second.file.closed
    assert (await store.put(b"z" * 10)).content == b"z" * 10
    third = await store.put(b"!")
    assert third.content is None, "dropping twice must not make room twice"
    store.drop(third)
