"""The report: counts of the rows themselves, and a page that opens offline, plays, filters, and runs nothing else."""

import hashlib
import json
import re
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import cli, tone, write

from pipelines.clip import Clip, write_clips
from pipelines.examples import examples
from pipelines.figures import figures
from pipelines.page import charts, link, short, write_page
from pipelines.preview import png, spectrogram
from pipelines.report import funnel, grid, summarise

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run")  # fmt: skip
HOSTILE = '<script>window.owned = 1</script><img src=x onerror="window.owned = 2">{{ 7 * 7 }}'


def page_of(out: Path) -> str:
    write_page(out, json.loads((out / "report.json").read_text()), "A <b>title</b>")
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    lines = ["path,caption_1,caption_2,tags,license,author,title,url,split"]
    for number in range(4):
        write(folder / f"in/{number}.wav", 1 + number, hertz=300 + 100 * number)
        lines.append(
            f"{number}.wav,A tone of number {number},A beep,tone;beep,CC0,Ann,T {number},https://e.org/{number},train"
        )
    write(folder / "in/4.wav", 12, hertz=900)
    text = '"' + HOSTILE.replace('"', '""') + '"'
    lines += [f"4.wav,{text},,{text},{text},{text},{text},javascript:alert(1),test", "gone.wav,Gone,,,CC0,,,,train"]
    lines += ["http://127.0.0.1:9/a.wav,A,,,CC0,,,,train", "5.wav,,,,CC0,,,,train"]
    write(folder / "in/5.wav", 1, hertz=1000)
    (folder / "in/table.csv").write_text("\n".join(lines) + "\n")
    cli("build-dataset", "csv", "--input", folder / "in/table.csv", "--out", folder / "out", "--workers", 0)
    return folder / "out"


@pytest.fixture(scope="module")
def html(out):
    return page_of(out)


def test_the_report_counts_sources_licences_and_languages_of_kept_clips(out):
    report = summarise(out)
    assert report["sources"] == {"csv": {"clips": 5, "hours": pytest.approx(22 / 3600, abs=1e-4), "captions": 9}}
    assert max(report["licenses"].values()) == 4
    assert sum(report["licenses"].values()) == 5 and report["contamination"] == []
    assert sum(report["languages"].values()) <= 5


def test_the_funnel_loses_at_each_stage_what_was_rejected_there(out):
    rows = {stage: (before, after) for stage, before, after in funnel(out / "build", summarise(out))}
    assert rows["manifest"] == (8, 8) and rows["download"] == (8, 6) and rows["shard"] == (5, 5)
    assert [*rows][0:2] == ["manifest", "exclude"] and [*rows][-1] == "shard"


def test_figures_count_what_the_files_hold(out):
    counted = figures(out / "build")
    assert {name: n for name, n, _ in counted.histogram("duration") if n} == {
        "1 to under 2": 1, "2 to under 3": 1, "3 to under 5": 2, "10 to under 15": 1}  # fmt: skip
    assert counted.rates == {16_000: 5} and counted.tags["tone"] == 4
    assert [sum(n for _, n, _ in counted.histogram(name)) for name in ("rms_dbfs", "bandwidth_hz", "words")] == [
        5,
        5,
        9,
    ]
    assert counted.hosts == {"file": {"missing-file": 1, "no-caption": 1}, "127.0.0.1": {"forbidden-address": 1}}


def test_a_level_under_the_lowest_edge_and_one_on_an_edge_are_counted_once(tmp_path):
    levels = [-100.0, -60.0, -6.0, 0.0, None]
    clips = [Clip(id=f"s/{n}", source="s", rms_dbfs=level) for n, level in enumerate(levels)]
    counted = figures(build_of(tmp_path, clips))
    bars = {name: n for name, n, _ in counted.histogram("rms_dbfs") if n}
    minus = "\N{MINUS SIGN}"
    assert bars == {f"under {minus}60": 1, f"{minus}60 to under {minus}54": 1, f"{minus}6 and more": 2}


def build_of(tmp_path: Path, clips: list[Clip]) -> Path:
    """A build folder with these rows in its manifest."""
    build = tmp_path / "build"
    write_clips(build / "manifest" / "part-00000.parquet", clips)
    (build / "recipe.json").write_text('{"stages": {"manifest": {"source": "csv"}}}')
    return build


@pytest.mark.parametrize(("location", "host"), [
    ("https://user:secret@CDN.example.org:8080/a?b#c", "cdn.example.org"), ("file:///a b/c.wav", "file"),
    ("s3://bucket/key", "bucket"), ("nowhere", "none"), ("", "none"),
])  # fmt: skip
def test_a_rejected_row_is_counted_for_its_host(tmp_path, location, host):
    clip = Clip(id="s/1", source="s", location=location).reject("download", "timeout")
    assert figures(build_of(tmp_path, [clip])).hosts == {host: {"timeout": 1}}


def test_a_source_of_which_nothing_was_kept_is_listed_too(tmp_path):
    clips = [Clip(id="b/1", source="b").reject("download", "timeout"), Clip(id="a/1", source="a", captions=("x", "y"))]
    build_of(tmp_path, clips)
    assert summarise(tmp_path)["sources"] == {
        "b": {"clips": 0, "hours": 0, "captions": 0}, "a": {"clips": 1, "hours": 0, "captions": 2}}  # fmt: skip


def test_a_build_of_an_earlier_version_counts_what_its_parts_do_not_have_as_nothing(tmp_path):
    build_of(tmp_path, [Clip(id="a/1", source="a", captions=("x",))])
    (part,) = tmp_path.glob("build/manifest/*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["debiased", "generated_by"]), part)
    report = summarise(tmp_path)
    assert (report["rows"], report["debiased"], report["generated"]) == (1, 0, {})


def test_generated_captions_are_counted_where_a_build_is_shown(tmp_path):
    clips = [Clip(id=f"a/{n}", source="a", generated_by="m@1" if n else "template", debiased=n) for n in range(3)]
    build_of(tmp_path, clips)
    shown = " ".join(cli("status", tmp_path).stdout.split())
    assert "generated by m@1 2" in shown and "generated by template 1" in shown and "words de-biased 3" in shown


def shards_of(tmp_path: Path, rows: list[tuple[str, str]]) -> Path:
    """A dataset of ids and sources in shards of three rows, in row groups of two."""
    (tmp_path / "data").mkdir()
    for number, start in enumerate(range(0, len(rows), 3)):
        table = pa.table({name: [row[k] for row in rows[start : start + 3]] for k, name in enumerate(("id", "source"))})
        pq.write_table(table, tmp_path / f"data/train-{number:05d}-of-00009.parquet", row_group_size=2)
    return tmp_path


def test_examples_are_spread_over_the_sources_and_do_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = [(f"a/{n}", "a") for n in range(17)] + [("b/1", "b"), ("c/1", "c"), ("c/2", "c"), ("c/3", "c")]
    (tmp_path / "x").mkdir(), (tmp_path / "y").mkdir()
    found = examples(shards_of(tmp_path / "x", rows), 6, ["id", "source", "audio"])
    assert [row["source"] for row in found] == ["a", "b", "c", "a", "c", "a"]
    assert len({row["id"] for row in found}) == 6 and all(row["id"].startswith(row["source"]) for row in found)
    assert examples(shards_of(tmp_path / "y", rows[::-1]), 6, ["id", "source"]) == found


def test_examples_of_a_long_shard_take_no_memory_for_every_row(tmp_path):
    (tmp_path / "data").mkdir()
    ids = [f"a/{n}" for n in range(40_000)]
    table = pa.table({"id": ids, "source": ["a"] * len(ids)})
    pq.write_table(table, tmp_path / "data/train-00000-of-00001.parquet", row_group_size=1000)
    tracemalloc.start()
    found = examples(tmp_path, 3, ["id"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    first = sorted(ids, key=lambda id: hashlib.sha256(id.encode()).digest())[:3]
    assert [row["id"] for row in found] == first and peak < 2_000_000


def test_a_cell_that_is_too_long_for_a_page_is_cut(tmp_path):
    (tmp_path / "data").mkdir()
    row = {"id": "a/1", "source": "a", "captions": ["word " * 10_000], "tags": [f"t{n}" for n in range(1000)],
           "url": "https://e.org/" + "x" * 1000, "duration": 1.0}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data/train-00000-of-00001.parquet")
    (found,) = examples(tmp_path, 1, list(row))
    assert len(found["captions"][0]) == 500 and found["captions"][0].endswith("…")
    assert found["tags"] == row["tags"][:20] and found["id"] == "a/1" and found["duration"] == 1.0
    assert link(found["url"]) == "" and link("https://e.org/x") == "https://e.org/x"


def test_a_page_says_that_there_are_more_tags_than_it_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.figures.MOST_TAGS", 4)
    clips = [Clip(id=f"s/{n}", source="s", tags=(f"t{n}", "t" * 1000)) for n in range(6)]
    counted = figures(build_of(tmp_path, clips))
    drawn = {name: (unit, bars) for name, unit, bars, _ in charts(counted, summarise(tmp_path))}
    unit, bars = drawn["Most frequent tags"]
    assert unit == "of more than 2 different ones" and max(len(name) for name, _ in bars) == 500


def test_a_report_is_refused_while_the_build_is_unfinished_and_keeps_the_title_of_the_source(out, tmp_path):
    copy = shutil.copytree(out, tmp_path / "out")
    cli("report", copy)
    assert "<title>A table of sounds: report</title>" in (copy / "report.html").read_text(encoding="utf-8")
    (copy / "dataset/README.md").unlink()
    next((copy / "dataset/data").glob("*.parquet")).unlink()
    done = cli("report", copy, check=False)
    assert done.returncode == 1 and "run build-dataset again with the same settings, then report" in done.stderr


def test_the_page_refers_to_nothing_outside_of_it(html):
    assert not re.search(r"""(?:src|srcset|data|poster|action)\s*=\s*["']?(?:https?:)?//""", html)
    assert "<link" not in html and "@import" not in html and "url(" not in html and "fetch(" not in html


def test_hostile_text_is_escaped_in_the_page(html):
    assert "<script>window.owned" not in html and "<img src=x" not in html and "<b>title" not in html
    assert "&lt;script&gt;window.owned" in html and "{{ 7 * 7 }}" in html and 'href="javascript' not in html


def test_the_page_shows_rejections_by_reason_and_host_and_what_the_source_publishes(html):
    assert "no-caption" in html and "127.0.0.1" in html and "the file does not exist or cannot be read" in html
    assert "no counts" in html and "--exclude-evaluation" in html


def test_contamination_is_a_table_in_the_page(out):
    found = [{"name": "esc50", "compared": {"clips": 2000, "audio": 40}, "removed": {}}]
    write_page(out, summarise(out) | {"contamination": found}, "T")
    assert "clips 2,000, audio 40" in (out / "report.html").read_text()
    assert grid(found)[1] == ["esc50", "clips 2,000, audio 40", "none"] and grid([]) == []


def test_a_build_without_audio_and_one_of_which_nothing_is_kept_have_pages_too(tmp_path):
    (tmp_path / "t.csv").write_text("path,caption,duration\na.wav,A dog,3\n")
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "facts", "--metadata-only")
    html = page_of(tmp_path / "facts")
    assert "A dog" in html and "<audio" not in html and "3 to under 5" in html
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "none")
    assert "No clip was kept." in page_of(tmp_path / "none")


def test_a_spectrogram_is_bright_where_the_sound_is_and_black_in_silence():
    grey = spectrogram(tone(1.0, 48_000, 5_000)[:, 0])
    assert grey.shape == (96, 400) and grey.dtype == np.uint8
    mel = [2595 * np.log10(1 + hertz / 700) for hertz in (40, 5_000, 20_000)]
    assert grey[:, 200].argmax() == pytest.approx(95 - 96 * (mel[1] - mel[0]) / (mel[2] - mel[0]), abs=1.5)
    assert spectrogram(np.zeros(100, np.float32)).max() == 0


def test_a_png_holds_the_picture():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    file = png(grey)
    assert struct.unpack(">II", file[16:24]) == (3, 2)
    start = file.index(b"IDAT") + 4
    assert zlib.decompress(file[start : file.index(b"IEND") - 8]) == b"\0\0\1\2\0\3\4\5"


def test_numbers_over_bars_are_short():
    assert [short(n) for n in (0, 999, 1000, 9949, 12_345, 3_400_000)] == ["0", "999", "1.0k", "9.9k", "12k", "3.4M"]


def until(page, condition: str) -> None:
    """Wait until an expression holds in the page; Playwright's own way would need its policy lifted."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never: {condition}")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip("there is no Chromium at /usr/bin/chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, out, html):
    (out / "report.html").write_text(html, encoding="utf-8")
    page = browser.new_page(viewport={"width": 400, "height": 900}, offline=True)
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url.split(",")[0]))
    page.goto(f"file://{out / 'report.html'}")
    yield page
    page.close()


def test_in_a_browser_the_page_opens_without_complaint_and_runs_nothing_from_outside(page):
    page.locator(".clip").last.scroll_into_view_if_needed()
    assert page.complaints == [] and page.evaluate("window.owned") is None
    assert {url.partition(":")[0] for url in page.asked} <= {"file", "data"} and page.asked[0].startswith("file:")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    until(page, "[...document.images].every(image => image.naturalWidth === 400)")


def test_in_a_browser_a_click_plays_a_clip_and_another_one_stops_it(page):
    first, second = page.locator(".clip").nth(0), page.locator(".clip").nth(1)
    first.get_by_role("button", name="Play").click()
    until(page, "document.querySelectorAll('audio')[0].currentTime > 0.1")
    assert page.evaluate("[...document.querySelectorAll('audio')].map(audio => audio.paused)")[:2] == [False, True]
    second.locator("img").click(position={"x": 200, "y": 20})
    until(page, "document.querySelectorAll('audio')[1].currentTime > 0.4")
    assert page.evaluate("[...document.querySelectorAll('audio')].map(audio => audio.paused)")[:2] == [True, False]
    assert page.complaints == []


def test_in_a_browser_the_filter_hides_clips(page, out):
    page.get_by_label("Words").fill("NUMBER 2 beep")
    assert page.locator(".clip:visible").count() == 1 and page.locator("output").inner_text() == "1 of 5"
    page.get_by_label("Words").fill("")
    page.get_by_label("Licence").select_option(next(iter(summarise(out)["licenses"])))
    assert page.locator(".clip:visible").count() == 4
