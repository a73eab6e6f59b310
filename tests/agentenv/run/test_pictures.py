"""Images in the report: shown if they are what they say and not too large, and a note else."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentenv.run import pictures
from agentenv.run.directory import RunDirectory
from agentenv.run.record import GroupRecord
from agentenv.run.report import write_report
from tests.agentenv.run.browser import CHROMIUM, browser_page
from tests.agentenv.run.records import group, scored_group, trajectory
from tests.agentenv.run.test_report import _Page
from tests.agentenv.test_images import PICTURE, picture

IMAGE = PICTURE.to_payload()
SVG = base64.b64encode(b"<svg onload=alert(1)>").decode()


def with_images(*images: Any) -> GroupRecord:
    base = trajectory(0, 1.0)
    call = replace(base.steps[0].tool_calls[0], name="read", images=images)
    shown = replace(base, steps=(replace(base.steps[0], tool_calls=(call,)),))
    return GroupRecord("g", None, "look", scored_group([1.0]), (shown,))


async def report(path: Path, *records: GroupRecord, max_bytes: int = 50_000_000) -> Path:
    directory = await RunDirectory.open(path)
    for record in records:
        await directory.append(record)
    await directory.close()
    return write_report(path, max_bytes=max_bytes)


async def shown(path: Path, *images: Any) -> list[dict[str, Any]]:
    page = _Page(await report(path, with_images(*images)))
    (call,) = page.blocks["group-0"]["trajectories"][0]["steps"][0]["tool_calls"]
    found: list[dict[str, Any]] = call["images"]
    return found


async def test_an_image_is_in_the_page_with_what_it_is(tmp_path: Path):
    assert await shown(tmp_path, IMAGE) == [
        {"media_type": "image/png", "data": PICTURE.data, "note": "image/png, 4 x 4 pixels"}
    ]


@pytest.mark.parametrize(
    "image",
    [
        {**IMAGE, "media_type": "image/svg+xml", "data": SVG},
        {**IMAGE, "data": SVG},
        {**IMAGE, "media_type": "image/gif"},
        {**IMAGE, "media_type": "text/html"},
        {**IMAGE, "data": '"><script>alert(1)</script>'},
        {**IMAGE, "data": "AAAA"},
        {"media_type": ["image/png"]},
        {},
    ],
)
async def test_what_is_no_raster_image_is_a_note(tmp_path: Path, image: dict[str, Any]):
    (left,) = await shown(tmp_path, image)
    assert list(left) == ["note"]


async def test_a_large_image_is_a_note_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pictures, "MAX_PICTURE_CHARS", 50)
    (left,) = await shown(tmp_path, IMAGE)
    assert left == {
        "note": f"image/png, 4 x 4 pixels: {len(PICTURE.data) * 3 // 4} bytes are not in this page; "
        "groups.jsonl has them"
    }


async def test_images_of_a_whole_page_have_a_bound(tmp_path: Path):
    record = with_images(*[IMAGE] * 100)
    size = len(json.dumps(record.to_json()))
    page = _Page(await report(tmp_path, record, max_bytes=size))
    found = page.blocks["group-0"]["trajectories"][0]["steps"][0]["tool_calls"][0]["images"]
    kept = sum("data" in image for image in found)
    assert 0 < kept * len(PICTURE.data) <= size // 4
    assert all("not in this page" in image["note"] for image in found[kept:])


async def test_an_image_that_is_longer_than_a_text_may_be_is_whole(tmp_path: Path):
    noise = picture(4)
    data = base64.b64decode(noise.data) + bytes(range(256)) * 1000
    long = {**noise.to_payload(), "data": base64.b64encode(data).decode()}
    (found,) = await shown(tmp_path, long)
    assert base64.b64decode(found["data"]) == data


async def test_records_without_images_are_as_before(tmp_path: Path):
    page = _Page(await report(tmp_path, group(0)))
    call = page.blocks["group-0"]["trajectories"][0]["steps"][0]["tool_calls"][0]
    assert call["images"] == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
async def test_a_browser_shows_the_image_and_loads_nothing_else(tmp_path: Path):
    svg = {**IMAGE, "media_type": "image/svg+xml", "data": SVG}
    page_file = await report(tmp_path / "run", with_images(picture(64).to_payload(), svg))
    async with browser_page(f"{page_file.as_uri()}#1/1/Steps", tmp_path / "profile") as page:
        await page.until('document.querySelector("img.picture")?.naturalWidth === 64')
        assert await page.value('document.querySelectorAll("img").length') == 1
        await page.value(
            """document.addEventListener("securitypolicyviolation", event => {
                   document.title = event.effectiveDirective;
               });
               new Image().src = "http://127.0.0.1:9/x.png"; 0"""
        )
        await page.until('document.title === "img-src"')
