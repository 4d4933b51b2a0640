"""The page and its API over an index: finds what the model finds, refuses what is too much, runs nothing of a clip."""

import io
import re
import signal
import subprocess
import sys

import numpy as np
import pairs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import test_report
import torch
from conftest import ROOT, tone
from starlette.testclient import TestClient

from clap import CLAP
from clap.config import ClapError, ConfigError
from clap.search import api, sound
from clap.search import map as plane
from clap.search.build import build_index
from clap.search.clips import clip
from clap.search.index import Index
from clap.search.serve import is_local, is_own, listen, make_app, serve

HOSTILE = '<script>window.owned = 1</script><img src=x onerror="window.owned = 2">{{ 7 * 7 }}'
PORT = "http://127.0.0.1:8000"
browser, until = test_report.browser, test_report.until


def table() -> pa.Table:
    """Nine sounds of two seconds from two sources under three licences; the last one's texts are hostile."""
    rows = []
    for i, label in enumerate([*pairs.TONES] * 3):
        about = {"source": "ab"[i % 2], "license": ["CC0", "CC-BY-4.0", ""][i // 3], "author": f"Ann {i}",
                 "title": f"T {i}", "url": f"https://e.org/{i}", "tags": [label], "duration": 2.0}  # fmt: skip
        captions = [f"The sound of a {label}.", f"Number {i}"]
        rows.append(pairs.row(f"a/{i}", pairs.flac(pairs.sound(label, i, 2.0)), captions, labels=[label], **about))
    hostile = dict.fromkeys(("author", "title", "license"), HOSTILE) | {"url": "javascript:window.owned = 3"}
    rows[-1] |= hostile | {"captions": [HOSTILE, HOSTILE], "tags": [HOSTILE]}
    others = {"tags": pairs.TEXT, "duration": pa.float64()}
    names = ("source", "license", "author", "title", "url")
    return pa.Table.from_pylist(rows, pa.schema(pairs.SCHEMA | dict.fromkeys(names, pa.string()) | others))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CLAP.create(pairs.SMALL.model, ["The sound of a low tone.", "The sound of a buzz."]).eval()


@pytest.fixture(scope="module")
def index(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "data").mkdir()
    pq.write_table(table(), folder / "data" / "train-00000-of-00001.parquet", row_group_size=4)
    model.save_pretrained(folder / "model")
    build_index(model, folder, folder / "index", name=str(folder / "model"))
    return Index.open(folder / "index")


@pytest.fixture(scope="module")
def client(index, model):
    return TestClient(make_app(index, model), PORT)


def wav(wave: np.ndarray, rate: int = 48_000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def rows(answer) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [each["row"] for each in answer.json()]


def test_a_text_finds_what_brute_force_finds_among_the_clips_of_a_source_and_a_licence(client, index, model):
    scores = index.embeddings(np.arange(9)) @ model.embed_text(["a buzz"])[0]
    found = client.get("/api/search", params={"q": "a buzz", "k": 9}).json()
    assert [each["row"] for each in found] == np.argsort(-scores).tolist()
    assert [each["score"] for each in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    few = client.get("/api/search", params={"q": "a buzz", "k": 9, "source": "a", "license": "CC-BY-4.0"})
    assert sorted(rows(few)) == [4] and len(rows(client.get("/api/search?q=x&license=not stated"))) == 2
    assert rows(client.get("/api/search?q=x&source=nowhere")) == []


def test_a_sound_finds_what_its_embedding_finds_in_any_format_and_at_any_rate(client, index, model):
    flac = index.audio(4)[0]
    wave, rate = soundfile.read(io.BytesIO(flac))
    for content in (flac, wav(wave), wav(wave, kind="OGG"), wav(np.stack([wave, wave], 1), kind="AIFF")):
        found = client.post("/api/search/audio?k=9", content=content).json()
        scores = index.embeddings(np.arange(9)) @ model.embed_audio(*sound.decode(content))[0]
        assert [each["row"] for each in found] == np.argsort(-scores).tolist()
        assert [each["score"] for each in found if each["row"] == 4] == pytest.approx([1], abs=5e-3)
    slow = client.post("/api/search/audio", params={"license": "CC0"}, content=wav(wave[::3], rate // 3))
    assert len(rows(slow)) == 3


def test_clips_like_a_clip_are_the_nearest_others(client, index):
    scores = index.embeddings(np.arange(9)) @ index.embeddings([3])[0]
    assert rows(client.get("/api/clips/3/similar?k=100")) == [row for row in np.argsort(-scores) if row != 3]


def test_a_clip_comes_with_its_credit_and_never_with_an_address_that_runs(client, index):
    first = client.get("/api/clips/0").json()
    assert first["attribution"] == "T 0 by Ann 0, license: CC0, https://e.org/0"
    assert first["captions"] == ["The sound of a low_tone.", "Number 0"] and first["duration"] == 2
    assert clip(index, 8).url == "" and "javascript" not in clip(index, 8).attribution
    assert client.get("/api/clips/6").json()["license"] == "not stated" and "place" not in first


def test_a_clip_is_heard_as_it_was_published_and_seen(client, index):
    answer = client.get("/api/clips/1/audio")
    assert (answer.content, answer.headers["content-type"]) == index.audio(1) == (index.audio(1)[0], "audio/flac")
    assert len(client.get("/api/clips/1/spectrogram").content) == sound.BANDS * sound.COLUMNS
    loudest = sound.spectrogram(tone(2, 48_000, 5_000)[:, 0], 48_000)[:, 200].argmax()
    assert loudest < sound.spectrogram(tone(2, 48_000, 500)[:, 0], 48_000)[:, 200].argmax() - 20
    silent = sound.spectrogram(np.zeros(1, np.float32), 8_000)
    assert silent.shape == (sound.BANDS, sound.COLUMNS) and silent.max() == 0


def test_what_browsers_do_not_play_becomes_flac():
    wave = tone(0.5, 22_050)[:, 0]
    content, kind = sound.playable(wav(wave, 22_050, "AIFF"), "audio/aiff")
    assert kind == "audio/flac" and np.allclose(soundfile.read(io.BytesIO(content))[0], wave, atol=1e-4)
    assert sound.playable(b"as it is", "audio/mpeg") == (b"as it is", "audio/mpeg")


def test_the_overview_counts_every_clip_once(client):
    holds = client.get("/api/facets").json()
    assert holds["clips"] == 9 and holds["hours"] == pytest.approx(18 / 3600) and holds["sources"] == {"a": 5, "b": 4}
    assert holds["licenses"] == {"CC-BY-4.0": 3, "CC0": 3, "not stated": 2, HOSTILE: 1}
    assert holds["examples"][0] == "The sound of a low_tone." and HOSTILE not in holds["examples"]


@pytest.mark.parametrize(("content", "said"), [
    (b"", "no sound that can be read"), (b"RIFF" + bytes(2000), "no sound that can be read"),
    (wav(np.zeros(0)), "is empty"), (wav(np.full(9, np.nan), subtype="FLOAT"), "NaN or infinity"),
    (wav(np.zeros(601 * 8_000), 8_000, "FLAC"), "too long (10.0 minutes, 1 channels"),
    (wav(np.zeros(99), 500), "is at 500 Hz"),
], ids=["nothing", "header", "empty", "nan", "long", "slow"])  # fmt: skip
def test_a_sound_that_cannot_be_used_is_refused_in_a_sentence(client, content, said):
    answer = client.post("/api/search/audio", content=content)
    assert answer.status_code == 400 and said in answer.json()["error"]


def test_a_sound_that_is_too_short_for_its_rate_is_refused_and_one_without_seeking_is_read(client):
    answer = client.post("/api/search/audio", content=wav(np.full(1, 0.1), 384_000))
    assert answer.status_code == 400 and "cannot be searched with" in answer.json()["error"]
    assert rows(client.post("/api/search/audio?k=2", content=wav(tone(1, 8_000)[:, 0], 8_000, subtype="GSM610")))


def test_a_file_of_any_size_is_played_and_one_too_large_to_be_decoded_is_refused(model, tmp_path, monkeypatch):
    for name, kind in (("a.wav", "WAV"), ("b.aiff", "AIFF")):
        (tmp_path / name).write_bytes(wav(tone(0.5, 48_000)[:, 0], kind=kind))
    build_index(model, tmp_path, tmp_path / "index")
    client = TestClient(make_app(Index.open(tmp_path / "index"), model), PORT)
    for row, said in ((0, "audio/wav"), (1, "audio/flac")):
        answer = client.get(f"/api/clips/{row}/audio")
        assert answer.headers["content-type"] == said and len(soundfile.read(io.BytesIO(answer.content))[0]) == 24_000
        assert client.get(f"/api/clips/{row}/spectrogram").status_code == 200
    monkeypatch.setattr(sound, "MOST_BYTES", 1000)
    monkeypatch.setattr(Index, "audio", None)  # nothing may read all of it
    part = client.get("/api/clips/0/audio", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")
    assert part.headers["content-disposition"] == "inline; filename*=UTF-8''folder%2Fa.wav.wav"
    for path in ("0/spectrogram", "1/audio", "1/spectrogram"):
        answer = client.get(f"/api/clips/{path}")
        assert answer.status_code == 400 and "too large to be decoded" in answer.json()["error"]


def test_a_small_file_that_would_fill_the_memory_is_not_decoded():
    with pytest.raises(sound.SoundError, match="too long"):
        sound.refuse(599 * 48_000, 3, 48_000)
    sound.refuse(600 * 48_000, 2, 48_000)


def test_an_upload_that_is_too_large_is_refused_before_its_end(client, monkeypatch):
    monkeypatch.setattr(api, "MOST_BYTES", 2**20)
    sent = iter([bytes(2**18)] * 5)
    answer = client.post("/api/search/audio", content=sent)
    assert (answer.status_code, answer.json()) == (413, {"error": "the sound has more than 1 MB: cut it shorter"})


@pytest.mark.parametrize(("path", "status"), [
    ("/api/search", 422), ("/api/search?q=", 422), (f"/api/search?q={'x' * 501}", 422), ("/api/search?q=x&k=101", 422),
    ("/api/search?q=x&k=0", 422), ("/api/clips/9", 404), ("/api/clips/-1", 404), ("/api/clips/9/audio", 404),
    ("/api/clips/9/spectrogram", 404), ("/api/clips/9/similar", 404), ("/api/clips/index.json/audio", 422),
    ("/api/clips/..%2f..%2findex.json", 404), ("/../index.json", 404), ("/index.json", 404), ("/map.npz", 404),
    (f"/api/clips/{10**30}", 404),
])  # fmt: skip
def test_what_is_out_of_bounds_is_refused_in_a_sentence_and_no_request_names_a_file(client, path, status):
    answer = client.get(path)
    assert answer.status_code == status and isinstance(answer.json()["error"], str) and len(answer.json()) == 1


def test_a_search_too_many_is_told_to_come_again_and_one_that_fails_makes_room(index, model, monkeypatch):
    monkeypatch.setattr(api, "WAITING", 0)
    answer = TestClient(make_app(index, model), PORT).get("/api/search?q=x")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1") and "try again" in answer.json()["error"]
    monkeypatch.setattr(api, "WAITING", 1)
    one = TestClient(make_app(index, model), PORT)
    assert one.post("/api/search/audio", content=b"x").status_code == 400
    assert one.get("/api/search?q=x").status_code == 200


def test_who_sends_a_sound_slowly_takes_no_place_from_others(index, model, monkeypatch):
    monkeypatch.setattr(api, "WAITING", 1)
    app, others = make_app(index, model), []

    def pieces():
        yield b"x"
        others.append(TestClient(app, PORT).get("/api/search?q=x").status_code)
        yield b"x"

    assert TestClient(app, PORT).post("/api/search/audio", content=pieces()).status_code == 400
    assert others == [200]


def test_a_clip_whose_file_is_gone_is_told_and_another_fault_is_not_shown(index, model, monkeypatch):
    client = TestClient(make_app(index, model), PORT, raise_server_exceptions=False)
    monkeypatch.setitem(index.config, "root", "/nowhere")
    gone = client.get("/api/clips/0/audio")
    assert gone.status_code == 500 and "/nowhere" in gone.json()["error"]
    monkeypatch.delitem(index.config, "truncation")
    broken = client.post("/api/search/audio", content=wav(tone(0.5)[:, 0]))
    assert broken.json() == {"error": "something went wrong here: see what the server printed"}


@pytest.mark.parametrize("header", ["evil.example", "127.0.0.1.evil.example:8000", "localhost.", "", "[::1", "a@b@c"])
def test_a_request_to_another_name_is_refused(client, header):
    answer = client.get("/api/facets", headers={"Host": header})
    assert answer.status_code == 421 and "clips" not in answer.json()


@pytest.mark.parametrize(
    "header", ["localhost", "localhost:1", "127.0.0.1:8000", "[::1]:8000", "192.168.0.7", "Box:80"]
)
def test_a_request_to_this_machine_or_to_the_host_that_was_named_is_answered(header):
    assert is_own(header, "box") and not is_own("box", "127.0.0.1")
    assert is_local("127.0.0.1") and is_local("::1") and not is_local("0.0.0.0") and not is_local("box")


def test_another_site_may_link_here_but_not_ask(client):
    for site in ("cross-site", "same-site"):  # same-site: another port of localhost
        headers = {"Sec-Fetch-Site": site}
        assert client.get("/api/facets", headers=headers).status_code == 403
        assert client.get("/", headers=headers).status_code == 200
    assert "access-control-allow-origin" not in client.get("/api/facets", headers={"Origin": PORT}).headers


def test_the_pages_refer_to_nothing_outside_and_run_only_their_own_script(client):
    for path in ("/", "/docs"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert not re.search(r"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//|@import|url\(""", answer.text)
        assert policy.count("sha256-") == len(re.findall("<(?:script|style)>", answer.text)) >= 2
    for path in ("/api/facets", "/api/clips/0/audio", "/openapi.json", "/nowhere"):
        headers = client.get(path).headers
        assert (
            "script-src 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        )


def test_the_api_describes_every_endpoint_and_parameter_it_has(client):
    described, page = client.get("/openapi.json").json()["paths"], client.get("/docs").text
    assert all(path in page for path in described) and len(described) == 8
    for path, method in (("/api/search", "get"), ("/api/search/audio", "post"), ("/api/clips/{row}/similar", "get")):
        assert {"k", "source", "license"} <= {each["name"] for each in described[path][method]["parameters"]}


def test_the_map_is_drawn_once_and_anew_when_the_index_changes(client, index, monkeypatch):
    drawn = client.get("/api/map").json()
    assert drawn["row"] == list(range(9)) and min(drawn["x"]) == min(drawn["y"]) == 0 and max(drawn["x"]) == 1
    assert drawn["groups"] == ["buzz", "high_tone", "low_tone"] and drawn["group"] == [2, 1, 0] * 3
    monkeypatch.setattr(plane, "MOST", 3)
    assert client.get("/api/map").json() == drawn
    monkeypatch.setitem(index.config, "number", 2)
    assert client.get("/api/map").json()["row"] == [0, 4, 8]


def test_the_map_lies_on_the_axes_of_pca():
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32) * np.arange(1, 9)
    ours, theirs = plane.principal(x), PCA(2).fit_transform(x)
    assert np.abs(np.corrcoef(ours.T, theirs.T)[:2, 2:]).round(5).tolist() == np.eye(2).tolist()
    assert np.array_equal(plane.principal(x), ours) and plane.principal(x[:1]).tolist() == [[0, 0]]


def test_many_groups_become_a_few_and_others(index):
    labels = [[f"label {i % 20}"] for i in range(39)] + [[]]
    made = pa.table({"labels": labels, "source": ["a"] * 40})
    names, group = plane.colours(made, np.arange(40))
    assert (
        len(names) == plane.GROUPS and names[-1] == "other" and max(group) == plane.GROUPS - 1 and group[0] == group[20]
    )
    assert plane.colours(pa.table({"labels": [[], []], "source": ["b", ""]}), np.arange(2)) == (
        ["b", "no source"],
        [0, 1],
    )


def test_serving_is_refused_for_another_model_a_taken_port_or_a_missing_package(index, model, monkeypatch):
    torch.manual_seed(1)
    with pytest.raises(ConfigError, match="an index of the model"):
        serve(index, CLAP.create(pairs.SMALL.model, ["another one"]))
    with listen("127.0.0.1", 0) as taken, pytest.raises(ClapError, match="give another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ClapError, match=re.escape('pip install "clapboard[search]"')):
        serve(index, model)


SERVER = """
import sys
from clap import CLAP
from clap.search.index import Index
from clap.search.serve import serve
index = Index.open(sys.argv[1])
try:
    serve(index, CLAP.from_pretrained(index.config["model"]), port=0)
except KeyboardInterrupt:  # which cli.py makes the same of
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def server(index):
    """A server in a process of its own: (address, process)."""
    line = [sys.executable, "-c", SERVER, str(index.path)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        yield said.split(" at ")[1].split(" ")[0], process
        process.kill()


@pytest.fixture(params=[1280, 400], ids=["wide", "narrow"])
def page(browser, server, request):
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(server[0])
    until(page, "document.querySelector('select[name=license]').length === 5")
    yield page
    assert page.complaints == [] and page.evaluate("window.owned") is None
    assert all(url.startswith((server[0], f"blob:{server[0]}")) for url in page.asked)
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    page.close()


def ask(page, text: str) -> None:
    page.get_by_label("What do you want to hear?").fill(text)
    page.get_by_role("button", name="Search", exact=True).click()
    until(page, "document.querySelector('#says').textContent.includes('clip')")


def shown(page) -> list[int]:
    return page.evaluate("[...document.querySelectorAll('#clips .clip')].map(each => Number(each.dataset.row))")


def test_in_a_browser_a_text_is_searched_its_clips_are_heard_and_filtered(page, client):
    ask(page, "a buzz")
    assert shown(page) == rows(client.get("/api/search?q=a+buzz"))
    first = page.locator("#clips .clip").first
    first.get_by_role("button", name="Play").click()
    until(page, "player.currentTime > 0.1")
    first.get_by_role("button", name="Pause").click()
    until(page, "player.paused")
    until(
        page, "document.querySelector('#clips canvas').getContext('2d').getImageData(0, 0, 400, 96).data.some(x => x)"
    )
    page.get_by_label("Licence", exact=True).select_option("CC0")
    until(page, "document.querySelectorAll('#clips .clip').length === 3")
    assert sorted(shown(page)) == [0, 1, 2]
    page.reload()
    until(page, "document.querySelectorAll('#clips .clip').length === 3")
    assert page.get_by_label("What do you want to hear?").input_value() == "a buzz"


def test_in_a_browser_a_sound_is_uploaded_and_what_is_like_a_result_is_found(page, index, client):
    page.get_by_label("Search by a sound").set_input_files(
        {"name": "<b>.flac", "mimeType": "audio/flac", "buffer": index.audio(4)[0]}
    )
    until(page, "document.querySelectorAll('#clips .clip').length === 9")
    assert shown(page)[0] == 4 and page.locator("#by b").inner_text() == "<b>.flac"
    page.locator("#by").get_by_role("button", name="Play").click()
    until(page, "player.currentTime > 0.1")
    page.locator("#clips .clip").first.get_by_role("button", name="More like this").click()
    until(page, "document.querySelectorAll('#clips .clip').length === 8")
    assert shown(page) == rows(client.get("/api/clips/4/similar"))


def test_in_a_browser_hostile_text_is_shown_and_not_run(page):
    ask(page, HOSTILE)
    bad = page.locator("#clips article[data-row='8']")
    assert HOSTILE in bad.inner_text() and bad.get_by_role("link", name="script").count() == 0
    assert page.evaluate("document.querySelectorAll('#clips img, #clips script').length") == 0


def test_in_a_browser_what_is_no_sound_is_told(page):
    drop = page.evaluate_handle(
        "() => { const d = new DataTransfer(); d.items.add(new File(['text'], 'a.wav')); return d; }"
    )
    page.dispatch_event("body", "drop", {"dataTransfer": drop})
    until(page, "!document.querySelector('#trouble').hidden")
    assert "no sound that can be read" in page.get_by_role("alert").inner_text() and shown(page) == []
    page.complaints = [each for each in page.complaints if "400 (Bad Request)" not in each]


def test_in_a_browser_a_point_of_the_map_is_heard_by_click_and_by_keys(page):
    if not page.evaluate("plane.open"):
        page.get_by_text("Map", exact=True).click()
    until(page, "points !== null && sheet.width > 0")
    x, y = page.evaluate("place(5)")
    page.locator("#plane > canvas").click(position={"x": x, "y": y})
    until(page, "document.querySelector('#picked .clip')?.dataset.row === '5' && player.currentTime > 0.1")
    page.keyboard.press("ArrowLeft" if page.evaluate("points.x[5]") > 0.5 else "ArrowRight")
    until(page, "document.querySelector('#picked .clip').dataset.row !== '5'")
    page.keyboard.press("Enter")
    until(page, "!player.paused")


def test_ctrl_c_ends_the_server(server):
    address, process = server
    assert address.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=20)[1]
    assert (process.returncode, errors) == (130, "")
