"""Groups on disk: in order, durable, bounded, and none twice."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from agentenv import RunDirectoryError
from agentenv.serve.spool import SENT_FILE, SPOOL_FILE, Spool


async def opened(folder: Path, *, max_bytes: int = 1_000_000) -> Spool:
    return await Spool.open(folder, max_bytes=max_bytes)


async def test_records_come_back_in_order_and_the_file_is_emptied_when_all_are_done(
    tmp_path: Path,
):
    spool = await opened(tmp_path)
    for number in range(5):
        await spool.put(b"record %d" % number)
    assert await spool.first(2) == [b"record 0", b"record 1"]
    await spool.done(2)
    assert (await spool.first(99), spool.pending) == ([b"record 2", b"record 3", b"record 4"], 3)
    await spool.done(3)
    assert (spool.pending, spool.bytes_used, await spool.first(1)) == (0, 0, [])
    assert (tmp_path / SPOOL_FILE).stat().st_size == 0
    await spool.close()


async def test_a_new_beginning_is_on_the_disk_before_records_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    on_disk: dict[str, bytes] = {}
    sync = os.fsync

    def noting(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        on_disk[path.name] = path.read_bytes()
        sync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    spool = await opened(tmp_path)
    for number in range(2):
        await spool.put(b"record %d" % number)
    on_disk.clear()
    await spool.done(1)
    await spool.done(1)
    assert on_disk[SENT_FILE] == bytes(8)
    await spool.close()


async def test_what_was_not_done_is_there_again_after_a_restart(tmp_path: Path):
    spool = await opened(tmp_path)
    for number in range(4):
        await spool.put(b"%d" % number * 1000)
    await spool.done(1)
    await spool.close()
    again = await opened(tmp_path)
    assert [record[:1] for record in await again.first(9)] == [b"1", b"2", b"3"]
    await again.put(b"4")
    assert await again.first(4) == [b"1" * 1000, b"2" * 1000, b"3" * 1000, b"4"]
    await again.close()


@pytest.mark.parametrize("cut", [1, 11, 13, 500])
async def test_a_torn_last_record_is_cut_off_and_the_others_stay(tmp_path: Path, cut: int):
    spool = await opened(tmp_path)
    await spool.put(b"whole")
    await spool.put(b"x" * 600)
    await spool.close()
    file = tmp_path / SPOOL_FILE
    os.truncate(file, file.stat().st_size - cut)
    again = await opened(tmp_path)
    assert await again.first(9) == [b"whole"]
    await again.put(b"next")
    assert await again.first(9) == [b"whole", b"next"]
    await again.close()


async def test_a_changed_byte_is_noticed(tmp_path: Path):
    spool = await opened(tmp_path)
    await spool.put(b"good")
    await spool.put(b"evil" * 100)
    await spool.close()
    data = bytearray((tmp_path / SPOOL_FILE).read_bytes())
    data[-1] ^= 1
    (tmp_path / SPOOL_FILE).write_bytes(data)
    again = await opened(tmp_path)
    assert await again.first(9) == [b"good"]
    await again.close()


async def test_a_place_beyond_the_file_counts_as_none(tmp_path: Path):
    spool = await opened(tmp_path)
    await spool.put(b"kept")
    await spool.close()
    (tmp_path / SENT_FILE).write_bytes((10**9).to_bytes(8, "little"))
    again = await opened(tmp_path)
    assert await again.first(1) == [b"kept"]
    await again.close()


async def test_it_says_when_it_is_full_and_has_room_again(tmp_path: Path):
    spool = await opened(tmp_path, max_bytes=100)
    await spool.put(b"x" * 200)
    assert not spool.has_room
    await spool.done(1)
    assert spool.has_room
    await spool.close()


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="file"):
        await opened(tmp_path / "file")


@pytest.mark.slow
async def test_a_process_that_is_killed_leaves_every_record_it_was_told_is_kept(tmp_path: Path):
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from agentenv.serve.spool import Spool\n"
        "async def main():\n"
        "    spool = await Spool.open(Path(sys.argv[1]), max_bytes=10**9)\n"
        "    for number in range(10**6):\n"
        "        await spool.put(b'%d' % number * 500)\n"
        "        print(number, flush=True)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    told = -1
    async with asyncio.timeout(60):
        while told < 50:
            told = int(await process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = await process.stdout.read()
    await process.wait()
    told = max([told, *map(int, rest.split())])
    spool = await opened(tmp_path)
    records = await spool.first(10**6)
    assert records[: told + 1] == [b"%d" % number * 500 for number in range(told + 1)]
    assert len(records) <= told + 2
    await spool.close()
