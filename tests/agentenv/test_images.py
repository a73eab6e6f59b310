"""An image in a tool's result, from the harness to the policy, the tokens, the disk and the report."""

import json
import struct
import zlib
from pathlib import Path

import pytest

from agentenv import harness
from agentenv.group import MemberContext
from agentenv.harness import ToolLoop
from agentenv.outcomes import Outcome, StopReason
from agentenv.records import group_record
from agentenv.rollout import RolloutLimits, RolloutRecord, rollout
from agentenv.run.directory import RunDirectory, read_groups
from agentenv.session import ChatSession, TokenSession
from agentenv.task import Task
from agentenv.testing import FakePolicy
from agentenv.tokens.base import Message
from agentenv.tokens.messages import to_chat_messages
from agentenv.types import AgentConfig, AgentResult, AgentStep
from agentenv_tools.images import image_part
from agentenv_tools.schema import ImagePart, ToolCall, ToolResult
from tests.agentenv.rollout_fakes import (
    FunctionVerifier,
    FunctionWorkbench,
    ScriptedSession,
    answer,
    calls,
)
from tests.agentenv.run.records import scored_group
from tests.agentenv.tokens.dialogues import SETUPS, renderer


def picture(side: int = 4) -> ImagePart:
    """A PNG that a browser shows: one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x20\x80\xc0" * side) * side)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return image_part(b"\x89PNG\r\n\x1a\n" + b"".join(parts), "image/png")


PICTURE = picture()
SHOWN = ToolResult(True, "[image/png, 4 x 4 pixels]", images=(PICTURE,))
TOOL_MESSAGE = Message("tool", SHOWN.to_json(), tool_call_id="c", name="read", images=(PICTURE,))


async def run(session: ScriptedSession, result: ToolResult) -> AgentResult:
    async def respond(call: ToolCall) -> ToolResult:
        return result

    record = await rollout(
        Task(instruction="look", item=None, agent=AgentConfig()),
        harness=ToolLoop(turn_timeout_s=5),
        session=session,
        workbench=FunctionWorkbench(respond),
        verifier=FunctionVerifier(),
        limits=RolloutLimits(rollout_timeout_s=60, verify_timeout_s=5),
        trajectory_id="t",
    )
    assert record.result is not None
    return record.result


# ---- the harness ----


async def test_the_harness_hands_images_on_beside_the_text():
    session = ScriptedSession(calls("read"), answer("seen"))
    result = await run(session, SHOWN)
    tool = session.messages[-2]
    assert (tool.role, tool.images) == ("tool", (PICTURE,))
    assert PICTURE.data not in tool.content
    assert result.steps[0].tool_results[0].images == (PICTURE,)
    assert result.messages[-2]["content"][1]["image_url"]["url"] == PICTURE.url


async def test_a_trajectory_holds_no_more_than_so_many_bytes_of_images(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(harness, "MAX_IMAGE_CHARS", len(PICTURE.data) * 3)
    session = ScriptedSession(calls("read", "read"), calls("read", "read"), answer("seen"))
    result = await run(session, SHOWN)
    kept = [bool(shown.images) for step in result.steps for shown in step.tool_results]
    assert kept == [True, True, True, False]
    last = result.steps[1].tool_results[1]
    assert "not shown: images of one trajectory" in last.output
    assert "not shown" in session.messages[-2].content


# ---- messages ----


def test_chat_messages_hold_images_only_where_asked_for():
    messages = [Message("user", "Look."), TOOL_MESSAGE, Message("assistant", "Blue.")]
    text = f"<tool_response>\n{TOOL_MESSAGE.content}\n</tool_response>"
    plain = to_chat_messages(messages)
    shown = to_chat_messages(messages, images=True)
    assert plain[1] == {"role": "user", "content": text}
    assert shown[1] == {
        "role": "user",
        "content": [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": PICTURE.url}},
        ],
    }
    assert plain[0::2] == shown[0::2]


def test_each_image_stands_after_the_result_it_belongs_to():
    other = Message("tool", "plain")
    (message,) = to_chat_messages([other, TOOL_MESSAGE, other, TOOL_MESSAGE], images=True)
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["text", "image_url", "text", "text", "image_url"]
    assert message["content"][0]["text"].count("<tool_response>") == 2
    assert message["content"][2]["text"] == "<tool_response>\nplain\n</tool_response>"


# ---- policies ----


def chat_session(policy: FakePolicy) -> ChatSession:
    return ChatSession(policy, [], trajectory_id="t", seed=1, token_budget=100)


@pytest.mark.parametrize("takes_images", [True, False])
async def test_a_chat_policy_gets_images_if_it_takes_them_else_the_text_line(takes_images: bool):
    policy = FakePolicy(["ok", "ok"], returns_tokens=False, takes_images=takes_images)
    session = chat_session(policy)
    session.add(Message("user", "Look."), TOOL_MESSAGE)
    await session.sample(turn=1, temperature=1.0, max_tokens=None)
    sent = json.dumps(policy.requests[0].messages)
    assert (PICTURE.data in sent) is takes_images
    assert "[image/png, 4 x 4 pixels]" in sent
    recorded = json.dumps(to_chat_messages(session.messages, images=True))
    assert (PICTURE.data in recorded) is takes_images


@pytest.mark.parametrize("setup", SETUPS)
async def test_a_token_policy_gets_the_text_line_and_not_a_token_of_the_image(setup: str):
    def ids(*messages: Message) -> list[int]:
        return renderer(setup).prompt(messages)

    question, reply = Message("user", "Look."), Message("assistant", "So?")
    without = Message("tool", SHOWN.to_json(), tool_call_id="c", name="read")
    assert ids(question, reply, TOOL_MESSAGE) == ids(question, reply, without)

    session = TokenSession(
        FakePolicy(), renderer(setup), [], trajectory_id="t", seed=1, token_budget=100
    )
    session.add(question, TOOL_MESSAGE)
    assert [message.images for message in session.messages] == [(), ()]
    assert session.messages[1].content == SHOWN.to_json()


# ---- on disk ----


def record_of(result: AgentResult) -> RolloutRecord:
    return RolloutRecord("t", Outcome.SCORED, StopReason.FINAL_ANSWER, 1.0, result)


def seen() -> AgentResult:
    call = ToolCall("read", {"path": "plot.png"}, uniq_id="c")
    return AgentResult(
        success=True,
        final_response="blue",
        stop_reason=StopReason.FINAL_ANSWER,
        steps=(AgentStep(1, "<calls>", (call,), (SHOWN,)),),
        messages=tuple(to_chat_messages([Message("user", "Look."), TOOL_MESSAGE], images=True)),
        total_tokens=1,
    )


async def test_an_image_is_stored_once_and_comes_back_as_it_was(tmp_path: Path):
    member = MemberContext(0, 0, records=[record_of(seen())])
    record = group_record(0, "item", "look", scored_group([1.0]), [member], 0.1)  # type: ignore[arg-type]
    directory = await RunDirectory.open(tmp_path)
    await directory.append(record)
    await directory.close()
    assert (tmp_path / "groups.jsonl").read_text().count(PICTURE.data) == 1
    (loaded,) = read_groups(tmp_path)
    (trajectory,) = loaded.trajectories
    assert trajectory.steps[0].tool_calls[0].images == (PICTURE.to_payload(),)
    assert trajectory.messages[1]["content"].startswith("<tool_response>")
