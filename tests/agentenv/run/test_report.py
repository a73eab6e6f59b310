import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agentenv.errors import RunDirectoryError
from agentenv.run.directory import GROUPS_FILE, RunDirectory
from agentenv.run.page import clip, data_block, run_lengths
from agentenv.run.record import GroupRecord, SequenceRecord
from agentenv.run.report import write_report
from tests.agentenv.run.records import group, trajectory

NASTY = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \u2028 & \ud800"


class _Page(HTMLParser):
    """Tags, scripts and policy of a page, read as a browser would."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, Any] = {}
        self.code: dict[str, str] = {}
        self.visible = ""
        self._inside: tuple[str, str | None] | None = None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (tag, dict(attrs).get("id"))

    def handle_data(self, data: str) -> None:
        tag, name = self._inside or ("", None)
        if tag == "script" and name:
            self.blocks[name] = json.loads(data)
        elif tag in ("script", "style"):
            self.code[tag] = data
        else:
            self.visible += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    @property
    def policy(self) -> str:
        found = next(attrs["content"] for tag, attrs in self.tags if attrs.get("http-equiv"))
        assert found is not None
        return found


async def _run_dir(path: Path, *records: GroupRecord, config: dict[str, Any] | None = None) -> Path:
    directory = await RunDirectory.open(path)
    for record in records:
        await directory.append(record)
    await directory.write_config(
        config or {"environment": "my.module:MyEnv", "env": {"group_size": 2}}
    )
    await directory.close()
    return path


async def test_the_page_holds_every_trajectory_as_data(tmp_path):
    page = _Page(write_report(await _run_dir(tmp_path, group(0), group(1))))
    assert [entry["scores"] for entry in page.blocks["run"]["groups"]] == [[0.0, 1.0]] * 2
    shown = page.blocks["group-1"]["trajectories"][1]
    assert shown["score"] == 1.0
    assert shown["steps"][0]["tool_calls"][0]["output"] == "done"


async def test_tokens_are_shown_with_their_texts_masks_and_logprobs(tmp_path):
    run_dir = await _run_dir(tmp_path, group(0))
    page = _Page(write_report(run_dir, token_texts=lambda ids: [f"<{token}>" for token in ids]))
    block = page.blocks["group-0"]
    sequence = block["trajectories"][0]["sequences"][0]
    assert [block["texts"][place] for place in sequence["tokens"]] == ["<0>", "<1>", "<2>", "<3>"]
    assert (sequence["trained"], sequence["logprobs"]) == ([1, 3], [-0.5, -0.5, -0.5])


async def test_a_sequence_that_is_no_row_of_the_group_brings_its_own_tokens(tmp_path):
    own = SequenceRecord(tokens=[7, 8], masks=[-100, 8], logprobs=[1.0, -2.0])
    base = trajectory(0, 0.0)
    changed = type(base).from_json({**base.to_json(), "sequences": [own.to_json()]})
    record = GroupRecord("g", None, "", group(0).group, (changed,))
    block = _Page(write_report(await _run_dir(tmp_path, record))).blocks["group-0"]
    assert block["ids"] == [7, 8]
    assert block["trajectories"][0]["sequences"][0]["logprobs"] == [-2.0]
    assert block["texts"] is None


async def test_nothing_a_model_wrote_becomes_markup(tmp_path):
    nasty = NASTY.replace("\ud800", "")
    config = {"environment": f"my.module:{nasty}", "env": {"note": nasty}}
    page = _Page(write_report(await _run_dir(tmp_path, group(0, text=nasty), config=config)))
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [attrs.get("id") for attrs in scripts] == ["group-0", "run", None]
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "svg", "form", "a")]
    links = [(tag, attrs) for tag, attrs in page.tags if tag == "link"]
    assert links == [("link", {"rel": "icon", "href": "data:,"})]
    assert not [
        name
        for tag, attrs in page.tags
        if (tag, attrs) not in links
        for name in attrs
        if name.startswith("on") or name in ("src", "href")
    ]
    assert page.blocks["group-0"]["trajectories"][0]["final_response"] == nasty


def test_a_block_of_data_survives_anything_and_ends_where_it_should():
    block = data_block("x", {"text": NASTY, "key<": 1}).decode()
    body = block.removeprefix('<script type="application/json" id="x">').removesuffix("</script>\n")
    assert not re.search(r"[<>&\u2028]", body)
    assert json.loads(body)["text"] == NASTY.replace("\ud800", "?")


async def test_the_policy_allows_the_one_script_and_the_one_style_and_nothing_else(tmp_path):
    page = _Page(write_report(await _run_dir(tmp_path, group(0))))
    directives = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["base-uri"] == directives["form-action"] == "'none'"
    assert directives["img-src"] == "data:"
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.code[kind].encode()).digest()).decode()
        assert directives[f"{kind}-src"] == f"'sha256-{digest}'"


async def test_the_script_has_no_way_to_make_markup_or_to_ask_for_anything(tmp_path):
    script = _Page(write_report(await _run_dir(tmp_path, group(0)))).code["script"]
    forbidden = [
        *("innerHTML", "outerHTML", "insertAdjacent", "document.write", "DOMParser", "eval("),
        *("Function(", "fetch(", "XMLHttpRequest", "WebSocket", "import(", 'setAttribute("on'),
        *(".href", 'setAttribute("src'),
    ]
    assert [word for word in forbidden if word in script] == []
    assert script.count(".src") == script.count('node.src = "data:" + image.media_type + ') == 1


async def test_secrets_are_not_in_the_page(tmp_path):
    config = {
        "environment": "m:E",
        "openai": [{"api_key": "canary", "base_url": "http://u:canary@h/v1"}],
    }
    report = write_report(await _run_dir(tmp_path, group(0), config=config))
    assert "canary" not in report.read_text()


async def test_a_large_run_shows_every_nth_group_and_says_where_the_others_are(tmp_path):
    records = [group(number, text="x" * 20_000) for number in range(30)]
    report = write_report(await _run_dir(tmp_path, *records), max_bytes=1_000_000)
    page = _Page(report)
    embedded = [entry["id"] for entry in page.blocks["run"]["groups"] if "block" in entry]
    assert len(page.blocks["run"]["groups"]) == 30
    assert 3 <= len(embedded) <= 8
    assert embedded[0] == "g0"
    assert embedded[-1] > "g20"  # spread over the run
    assert report.stat().st_size < 1_100_000
    assert f"{len(embedded)} of 30 groups" in page.blocks["run"]["notes"][0]
    assert GROUPS_FILE in page.blocks["run"]["notes"][0]


async def test_a_text_of_megabytes_is_cut_with_what_was_left_out(tmp_path):
    report = write_report(await _run_dir(tmp_path, group(0, text="é" * 5_000_000)))
    assert report.stat().st_size < 5_000_000
    final = _Page(report).blocks["group-0"]["trajectories"][0]["final_response"]
    assert "4,800,000 characters are not in this page" in final


async def test_damaged_lines_are_named_and_the_rest_is_shown(tmp_path):
    run_dir = await _run_dir(tmp_path, group(0))
    file = run_dir / GROUPS_FILE
    file.write_bytes(file.read_bytes() + b"{broken}\n" + file.read_bytes() + b'{"torn')
    page = _Page(write_report(run_dir))
    assert len(page.blocks["run"]["groups"]) == 2
    notes = " ".join(page.blocks["run"]["notes"])
    assert "line 2" in notes
    assert "line 4" in notes
    assert "not written to its end" in notes


async def test_a_run_without_groups_config_or_summary_still_gets_a_page(tmp_path):
    (tmp_path / GROUPS_FILE).touch()
    page = _Page(write_report(tmp_path))
    assert page.blocks["run"]["groups"] == []


def test_a_folder_that_is_no_run_is_refused_and_nothing_is_left_in_it(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"groups\.jsonl cannot be read"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="nowhere"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("flags", "lengths"),
    [([], [0]), ([0, 0], [2]), ([1], [0, 1]), ([0, 1, 1, 0], [1, 2, 1])],
)
def test_masks_are_stored_as_lengths_of_runs(flags, lengths):
    assert run_lengths(flag == 1 for flag in flags) == lengths


def test_clipping_reaches_nested_texts_and_leaves_the_rest():
    assert clip({"a": ["x" * 10, 1, None], "b": "short"}, 9) == {
        "a": [
            "xxxxxx\n[... 2 characters are not in this page; groups.jsonl has them ...]\nxx",
            1,
            None,
        ],
        "b": "short",
    }
