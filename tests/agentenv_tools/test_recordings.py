"""What terminals recorded: collected with the results, the rest asked for, bounded, and never in anybody's way."""

from typing import Any

import pytest

from agentenv_backends.errors import SlotLostError
from agentenv_backends.requests import RecordingRequest
from agentenv_backends.results import Recording, TerminalEvent
from agentenv_backends.testing import FakeProvider, FakeSlot, exec_result
from agentenv_tools import ToolCall
from agentenv_tools._recordings import MAX_SESSIONS, RecordingBook
from agentenv_tools.config import ToolExecutorConfig
from agentenv_tools.testing import FakeRun, fake_executor, in_virtual_time
from tests.agentenv_tools.test_terminal_tools import TERMINALS, shell, terminals, tmux


def printed(recording: Recording) -> str:
    return "".join(event.data for event in recording.events)


def slot_of(run: FakeRun) -> FakeSlot:
    host = next(iter(run.provider.live.values()))
    return next(slot for slot in host.slots.values() if slot.requests)


def asked_for_recordings(run: FakeRun) -> int:
    return sum(isinstance(one, RecordingRequest) for one in slot_of(run).requests)


@in_virtual_time
async def test_each_session_reads_like_a_terminal_in_the_order_of_its_calls():
    async with terminals() as run:
        await shell(run, "echo one")
        await tmux(run, "start", pane_width=90)
        await shell(run, "echo two")
        await tmux(run, "send_keys", keys=["ls", "Enter"])
        first, second = await run.executor.recordings("t")
    assert printed(first) == "$ echo one\r\none\r\n$ echo two\r\ntwo\r\n"
    assert (second.session, second.width, printed(second)) == ("tmux-2", 90, "ls\r\n")


@in_virtual_time
async def test_what_no_result_carried_is_asked_of_the_slot():
    async with terminals() as run:
        await shell(run, "echo one")
        session = slot_of(run).terminals._shell
        assert session is not None
        session.print("a job says something\n")
        (recording,) = await run.executor.recordings("t")
        assert printed(recording).endswith("a job says something\r\n")


@in_virtual_time
async def test_a_trajectory_that_only_used_terminal_costs_no_request():
    async with terminals() as run:
        await run.executor.execute("t", ToolCall("terminal", {"command": "echo x"}))
        assert await run.executor.recordings("t") == ()
        assert await run.executor.recordings("never seen") == ()
        assert asked_for_recordings(run) == 0


@in_virtual_time
async def test_what_was_collected_outlives_the_killing_and_is_no_more_than_once_in_it():
    async with terminals() as run:
        await shell(run, "echo one")
        before = await run.executor.recordings("t")
        await run.executor.quiesce("t")
        assert await run.executor.recordings("t") == before
        assert printed(before[0]) == "$ echo one\r\none\r\n"


@in_virtual_time
async def test_a_lost_slot_is_not_asked_and_what_came_before_is_kept():
    async with terminals() as run:
        await shell(run, "echo one")
        slot = slot_of(run)
        next(iter(run.provider.live.values())).lose_slot(slot.slot_id)
        with pytest.raises(SlotLostError):
            await shell(run, "echo two")
        (recording,) = await run.executor.recordings("t")
        assert printed(recording) == "$ echo one\r\none\r\n"
        assert not any(isinstance(one, RecordingRequest) for one in slot.requests)


@in_virtual_time
async def test_a_slot_that_does_not_hand_out_its_recording_costs_nothing_but_that(caplog):
    config = ToolExecutorConfig(recording_timeout_s=2)
    async with terminals(config=config) as run:
        await shell(run, "echo one")

        def stuck() -> Any:
            raise TimeoutError("stuck")

        slot = slot_of(run)
        kept, slot.terminals.recorded = slot.terminals.recorded, stuck  # type: ignore[method-assign]
        (recording,) = await run.executor.recordings("t")
        assert printed(recording) == "$ echo one\r\none\r\n"
        assert "the end of what the terminals of trajectory t recorded is lost" in caplog.text
        slot.terminals.recorded = kept  # type: ignore[method-assign]
        assert (await shell(run, "echo two")).output == "two\n"


@in_virtual_time
async def test_a_slot_that_hangs_over_its_recording_is_waited_for_a_moment_only():
    async with fake_executor(
        toolsets=("terminal_stateful",),
        provider=FakeProvider(capabilities=TERMINALS),
        config=ToolExecutorConfig(recording_timeout_s=2),
    ) as run:
        await shell(run, "echo one")
        host = next(iter(run.provider.live.values()))
        await slot_of(run).turn.acquire()  # something in the slot does not end
        (recording,) = await run.executor.recordings("t")
        assert printed(recording) == "$ echo one\r\none\r\n"
        slot_of(run).turn.release()
        assert host.gone is None
        assert (await shell(run, "echo two")).output == "two\n"


@in_virtual_time
async def test_a_flood_of_output_keeps_the_drivers_memory_bounded_and_is_counted():
    provider = FakeProvider(
        capabilities=TERMINALS, on_exec=lambda slot, request: exec_result("x" * 10_000)
    )
    async with fake_executor(
        toolsets=("terminal_stateful",),
        provider=provider,
        config=ToolExecutorConfig(max_recording_bytes=50_000),
    ) as run:
        for _ in range(20):
            await shell(run, "flood")
        (recording,) = await run.executor.recordings("t")
    assert len(printed(recording)) < 50_000
    assert recording.dropped_bytes + len(printed(recording)) == 20 * (10_000 + len("$ flood\r\n"))


@in_virtual_time
async def test_recording_can_be_turned_off():
    async with terminals(config=ToolExecutorConfig(max_recording_bytes=0)) as run:
        await shell(run, "echo one")
        assert await run.executor.recordings("t") == ()
        assert asked_for_recordings(run) == 0


# ---- the book ----


def _recording(session: str, *texts: str, dropped: int = 0) -> Recording:
    events = tuple(TerminalEvent(float(at), "o", text) for at, text in enumerate(texts))
    return Recording(session, 80, 24, events, dropped)


def test_pieces_of_a_session_become_one_and_their_losses_add_up():
    book = RecordingBook(10_000)
    book.add([_recording("shell-1", "a", dropped=3), _recording("tmux-2", "x")])
    book.add([_recording("shell-1", "b", dropped=4)])
    first, second = book.recordings()
    assert (printed(first), first.dropped_bytes, second.session) == ("ab", 7, "tmux-2")


def test_once_an_event_does_not_fit_none_after_it_is_kept():
    book = RecordingBook(1_000)
    book.add([_recording("shell-1", "a", "b" * 2_000, "c"), _recording("shell-2", "d")])
    first, second = book.recordings()
    assert (printed(first), first.dropped_bytes) == ("a", 2_001)
    assert (second.events, second.dropped_bytes) == ((), 1)
    assert book.full


def test_a_shell_started_again_and_again_gives_no_end_of_sessions():
    book = RecordingBook(1_000_000)
    for number in range(1_000):
        book.add([_recording(f"shell-{number}", "text")])
    kept = book.recordings()
    assert len(kept) == MAX_SESSIONS
    assert sum(one.dropped_bytes for one in kept) == 4 * (1_000 - MAX_SESSIONS)
