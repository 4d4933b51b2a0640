"""The sound libraries as published: Freesound (dump and API), Epidemic Sound, BBC, Audiostock, file names."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest
from conftest import write

from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.exclude import Exclude
from pipelines.local import local_path
from pipelines.manifest import prepare
from pipelines.sources import Reading, source
from pipelines.sources.freesound import to_clip
from pipelines.sources.freesound_api import search


def clips(name: str, path: Path | str, **reading: object) -> list[Clip]:
    return list(prepare(source(name).clips(path, Reading(**reading))))


# ---- Freesound


def dump(folder: Path, *rows: dict[str, object], kind: str = "parquet") -> Path:
    """A dump as LAION publishes it."""
    known = {"id": 1, "title": "rain.wav", "tags:": "", "description": "", "username": "ann",
             "download_url": "https://freesound.org/apiv2/sounds/1/download/"}  # fmt: skip
    frame, path = pd.DataFrame([known | row for row in rows]), folder / f"freesound_parquet.{kind}"
    frame.to_parquet(path) if kind == "parquet" else frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_sound_of_freesound_has_two_captions_tags_and_whom_to_credit(tmp_path, kind):
    row = {"id": 100032, "title": "rose_bark.wav", "tags:": "dog,,bark, pet", "username": "n frae",
           "description": "A dog, e.g. a pug, barks.\nRecorded in May.",
           "download_url": "https://freesound.org/apiv2/sounds/100032/download/"}  # fmt: skip
    (clip,) = clips("freesound", dump(tmp_path, row, kind=kind))
    assert clip.id == "freesound/100032" and clip.recording == "freesound:100032"
    assert clip.captions == ("rose bark.", "A dog, e.g. a pug, barks.")
    assert clip.tags == ("dog", "bark", "pet") and clip.author == "n frae" and clip.title == "rose_bark.wav"
    assert clip.url == "https://freesound.org/people/n%20frae/sounds/100032/"
    assert clip.location == "https://freesound.org/apiv2/sounds/100032/download/"
    assert json.loads(clip.original)["tags:"] == "dog,,bark, pet" and clip.split in ("train", "validation", "test")


@pytest.mark.parametrize(
    ("description", "caption"),
    [
        ("", None),
        (".", None),
        ("3.5 km from a v1.2 siren. Next.", "3.5 km from a v1.2 siren."),
        ("A <b>dog</b> barks. Next.", None),
        ("Rain if x > y. Next.", None),
        ("Single note.<br>See <a href='x'>there</a>.", "Single note."),
        ("Please credit me! A dog barks.", "A dog barks."),
        ("Free to use under CC0.", None),
    ],
)
def test_the_second_caption_is_a_whole_sentence_without_html_or_none(tmp_path, description, caption):
    (clip,) = clips("freesound", dump(tmp_path, {"description": description}))
    assert clip.captions == (("rain.", caption) if caption else ("rain.",))


@pytest.mark.parametrize(
    ("title", "caption"),
    [("Hold (Me-71.wav)", "Hold (Me-71)."), ("Dog (small", "Dog small."), ("Siren v1.2", "Siren v1.2.")],
)
def test_a_title_keeps_its_numbers_and_no_open_bracket(tmp_path, title, caption):
    assert clips("freesound", dump(tmp_path, {"title": title}))[0].captions == (caption,)


def test_audio_beside_the_dump_is_found_by_its_number(tmp_path):
    plain = write(tmp_path / "audio/1.wav")
    named = write(tmp_path / "audio/deep/22__ann__rain_3.flac.wav")
    dump(tmp_path, {"id": 1}, {"id": 22}, {"id": 2})
    found = [local_path(clip.location) for clip in clips("freesound", tmp_path)]
    assert found == [plain, named, tmp_path / "audio/2.wav"]


def test_licences_of_a_table_of_their_own_are_joined_by_id(tmp_path):
    dump(tmp_path, {"id": 1}, {"id": 2})
    (tmp_path / "licenses.csv").write_text("id,username,license\n2,bob,http://creativecommons.org/licenses/by/3.0/\n")
    found = [clip.license for clip in clips("freesound", tmp_path)]
    assert found == ["", "CC-BY-3.0"]
    assert clips("freesound", tmp_path / "freesound_parquet.parquet")[1].license == found[1]


@pytest.mark.parametrize("name", ["attribution.csv", "zz.csv"])
def test_a_table_of_licences_with_titles_is_not_the_dump(tmp_path, name):
    dump(tmp_path, {"id": 1}, {"id": 2})
    (tmp_path / name).write_text("id,title,license\n2,x,CC0\n")
    assert [(clip.id, clip.license) for clip in clips("freesound", tmp_path)] == [
        ("freesound/1", ""), ("freesound/2", "CC0-1.0"),
    ]  # fmt: skip


def test_dumps_of_two_kinds_are_not_chosen_from(tmp_path):
    dump(tmp_path, {"id": 1})
    dump(tmp_path, {"id": 2}, kind="csv")
    with pytest.raises(BuildError, match=r"freesound_parquet.csv and freesound_parquet.parquet: give one of them"):
        clips("freesound", tmp_path)


def test_a_file_beside_a_sound_is_not_its_audio(tmp_path):
    sound = write(tmp_path / "audio/1.flac")
    (tmp_path / "audio/1.json").write_text("{}")
    (tmp_path / "audio/sub").mkdir()
    (tmp_path / "audio/sub/1.txt").write_text("x")
    (clip,) = clips("freesound", dump(tmp_path, {"id": 1}))
    assert local_path(clip.location) == sound


def test_a_description_that_repeats_the_title_is_no_second_caption(tmp_path):
    (clip,) = clips("freesound", dump(tmp_path, {"title": "Rain falls.wav", "description": "Rain falls. Loudly."}))
    assert clip.captions == ("Rain falls.",)


def test_facts_of_a_dump_are_kept_and_odd_cells_are_not(tmp_path):
    rows = [{"license": "CC0", "duration": 2.5, "samplerate": 44100.0}, {"id": 2, "duration": None, "samplerate": 9e14}]
    first, second = clips("freesound", dump(tmp_path, *rows))
    assert (first.license, first.duration, first.sample_rate) == ("CC0-1.0", 2.5, 44100)
    assert (second.license, second.duration, second.sample_rate) == ("", None, None)


def test_a_row_without_an_id_is_rejected_and_no_path_or_file_comes_from_the_table(tmp_path):
    rows = [{"id": "../../etc", "download_url": ""}, {"id": "7.0", "download_url": "file:///etc/passwd"}]
    odd, good = clips("freesound", dump(tmp_path, *rows, kind="csv"))
    assert (odd.reason, odd.recording) == ("missing-file", "") and "row 1" in odd.detail
    assert good.id == "freesound/7" and local_path(good.location) == tmp_path / "audio/7.wav"


def test_a_folder_without_a_dump_says_how_to_obtain_one(tmp_path):
    with pytest.raises(BuildError, match="How to obtain it"):
        clips("freesound", tmp_path)
    (tmp_path / "t.csv").write_text("title\nrain\n")
    with pytest.raises(BuildError, match="no column id"):
        clips("freesound", tmp_path)


def test_descriptions_of_several_lines_with_commas_are_read(tmp_path):
    rows = [{"id": 1, "description": "Rain, and\nwind, hail, snow, ice, fog, mist, and sun."}, {"id": 2}]
    first, second = clips("freesound", dump(tmp_path, *rows, kind="csv"))
    assert first.captions[1] == "Rain, and wind, hail, snow, ice, fog, mist, and sun." and second.id == "freesound/2"


def test_real_sounds_in_freesounds_layout_are_excluded_by_their_ids(tmp_path, shared):
    """Take A of ESC-10: real titles, authors, licences and ids."""
    with (shared / "data/esc10/metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["take"] == "A"]
    (tmp_path / "audio").mkdir()
    for row in rows:
        (tmp_path / "audio" / f"{row['freesound_id']}.ogg").symlink_to(shared / "data/esc10" / row["path"])
    columns = [{"id": int(row["freesound_id"]), "title": row["title"], "username": row["author"], "tags:": row["label"],
                "license": row["license"]} for row in rows]  # fmt: skip
    dump(tmp_path, *columns)
    found = clips("freesound", tmp_path)
    assert len(found) == len(rows) and all(clip.captions and clip.license and clip.author for clip in found)
    assert all(local_path(clip.location).exists() for clip in found)
    ids = tuple(row["freesound_id"] for row in rows)
    assert {clip.reason for clip in Exclude(exclude_ids=ids)(found)} == {"evaluation-overlap"}


# ---- Freesound's API


class Api(BaseHTTPRequestHandler):
    """Two pages; the first answer to page 2 is 429. `trouble` is a status, or where to redirect to."""

    trouble: int | str = 0
    log: list[tuple[str, str]]

    def do_GET(self) -> None:
        type(self).log.append((self.path, self.headers.get("Authorization", "")))
        page = int(parse_qs(urlsplit(self.path).query).get("page", ["1"])[0])
        if self.trouble:
            self.send_response(302 if isinstance(self.trouble, str) else self.trouble)
            self.send_header("Location", str(self.trouble))
            self.end_headers()
        elif page == 2 and len(type(self).log) == 2:
            self.send_response(429)
            self.send_header("Retry-After", "1")
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(self.page(page)).encode())

    def page(self, page: int) -> dict[str, object]:
        """What the API answers; `next` names a public host, as behind a proxy."""
        preview = f"https://cdn.freesound.org/previews/{page}-hq.ogg"
        sound = {"id": page, "name": f"Rain_{page}.wav", "tags": ["rain", "roof"], "description": "Rain falls. Loudly.",
                 "username": "ann", "license": "https://creativecommons.org/publicdomain/zero/1.0/", "duration": 1.5,
                 "samplerate": 48000.0, "previews": {"preview-hq-ogg": preview}}  # fmt: skip
        following = "https://freesound.org/apiv2/search/?query=rain&page=2" if page == 1 else None
        return {"count": 2, "next": following, "results": [sound]}

    def log_message(self, *_: object) -> None: ...


@contextmanager
def api(trouble: int | str = 0) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The API in a thread: the address of a search, and what was asked with which key."""
    log: list[tuple[str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Api,), {"trouble": trouble, "log": log}))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/apiv2/search/?query=rain", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FREESOUND_TOKEN", "s3cret")
    return "s3cret"


def test_a_search_is_paged_waits_when_asked_and_keeps_the_key_to_itself(token):
    with api() as (url, log):
        rows = list(search(url, private=True))
    assert [key for _, key in log] == [f"Token {token}"] * 3  # page 1, page 2 refused, page 2
    assert not any(token in path for path, _ in log) and "page_size=150" in log[0][0] and "previews" in log[0][0]
    found = [to_clip(row, {}, None, "") for row in rows]
    assert [clip.id for clip in found] == ["freesound/1", "freesound/2"]
    assert found[0].captions == ("Rain 1.", "Rain falls.") and found[0].tags == ("rain", "roof")
    assert found[0].location == "https://cdn.freesound.org/previews/1-hq.ogg"
    assert (found[0].duration, found[0].sample_rate) == (1.5, 48000)
    assert token not in repr(found)


@pytest.mark.parametrize(("status", "said"), [(401, "refuses the key"), (404, "check the search")])
def test_a_key_or_search_that_freesound_refuses_ends_in_a_sentence(token, status, said):
    with api(status) as (url, log), pytest.raises(BuildError, match=said) as error:
        list(search(url, private=True))
    assert len(log) == 1 and token not in str(error.value)


def test_the_key_does_not_follow_a_redirect_to_another_host(token):
    with api() as (other, seen), api(other) as (url, _), pytest.raises(BuildError, match="another host"):
        list(search(url, private=True))
    assert seen == []


def test_the_key_goes_to_freesound_alone_and_never_in_the_clear(token):
    with api() as (url, log), pytest.raises(BuildError, match=r"is no search: want https://freesound\.org"):
        clips("freesound", url)
    for other in ("https://example.org", "http://freesound.org", "https://freesound.org.example.org"):
        with pytest.raises(BuildError, match="is no search"):
            clips("freesound", f"{other}/apiv2/search/?query=rain")
    assert log == []


def test_a_search_needs_a_key_from_the_environment_alone(monkeypatch):
    monkeypatch.delenv("FREESOUND_TOKEN", raising=False)
    with pytest.raises(BuildError, match="set FREESOUND_TOKEN"):
        clips("freesound", "https://freesound.org/apiv2/search/?query=rain")
    monkeypatch.setenv("FREESOUND_TOKEN", "s3cret")
    with pytest.raises(BuildError, match="must not stand in the URL") as error:
        clips("freesound", "https://freesound.org/apiv2/search/?query=rain&token=s3cret")
    assert "s3cret" not in str(error.value)
    with pytest.raises(BuildError, match="is no search"):
        clips("freesound", "https://freesound.org/people/ann/")


# ---- Epidemic Sound

CROWD = {"title": "Wrestling Crowd 5", "id": 130586.0, "added": "2021-03-29T11:17:05", "length": 30.0, "bpm": 0.0,
         "isSfx": 1.0, "hasVocals": 0.0, "energyLevel": "medium", "genres": "applause",
         "url": "https://cdn.example.org/ES_ITUNES/Wrestling%20Crowd%205/ES_Wrestling%20Crowd%205.mp3",
         "metadataTags": ["wrestling crowd", "huge crowd", "p.a.", "loop"]}  # fmt: skip


def test_an_epidemic_sound_has_its_title_and_tags_as_captions_and_its_class_as_a_tag(tmp_path):
    pd.DataFrame([CROWD]).to_parquet(tmp_path / "Crowds.parquet")
    (clip,) = clips("epidemic_sound", tmp_path)
    assert clip.id == "epidemic_sound/130586" and clip.duration == 30.0 and clip.location == CROWD["url"]
    assert clip.captions == ("Wrestling Crowd", "The sounds of wrestling crowd, huge crowd, p.a. and loop.")
    assert clip.tags == ("Crowds", "applause", "wrestling crowd", "huge crowd", "p.a.", "loop")
    assert json.loads(clip.original)["Class_name"] == "Crowds"


def test_one_tag_or_none_makes_proper_english(tmp_path):
    rows = [CROWD | {"id": n, "metadataTags": tags} for n, tags in enumerate((["loop"], [], None))]
    pd.DataFrame(rows).to_parquet(tmp_path / "Crowds.parquet")
    found = [clip.captions for clip in clips("epidemic_sound", tmp_path)]
    assert found == [("Wrestling Crowd", "The sound of loop."), ("Wrestling Crowd",), ("Wrestling Crowd",)]


def test_epidemic_audio_beside_the_tables_is_used_and_classes_follow_each_other(tmp_path):
    for name, number in (("Water", 2), ("Crowds", 1), ("Hip%20Hop", 3)):
        pd.DataFrame([CROWD | {"id": number, "genres": None}]).to_parquet(tmp_path / f"{name}.parquet")
    file = write(tmp_path / "audio/2.mp3")
    found = clips("epidemic_sound", tmp_path)
    assert [clip.tags[0] for clip in found] == ["Crowds", "Hip Hop", "Water"]
    assert local_path(found[2].location) == file and found[0].location == CROWD["url"]


def test_another_parquet_file_is_no_class_of_epidemic_sound(tmp_path):
    pd.DataFrame([{"id": 1}]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(BuildError, match="has no column title, genres, url, metadataTags"):
        clips("epidemic_sound", tmp_path)


# ---- BBC

LIST = (
    "location,description,secs,category,CDNumber,CDName,tracknum\n"
    '07076051.wav,"Two-stroke petrol engine driving small elevator, start, run, stop.",194,Engines: Petrol,EC117D,'
    "Diesel & Petrol Engines,6\n"
    "07076052.wav,French-Traffic - Busy village street,61,French-Traffic,EC1,France,1\n"
    "NHU05104223.wav,Traffic in a busy street,x,Traffic,EC2,France,2\n"
)


def test_the_bbcs_list_gives_descriptions_without_their_classes(tmp_path):
    (tmp_path / "BBCSoundEffects.csv").write_text(LIST)
    first, second, third = clips("bbc", tmp_path)
    assert first.id == "bbc/07076051" and first.duration == 194 and first.author == "BBC" and first.license
    assert first.captions == ("Two-stroke petrol engine driving small elevator, start, run, stop.",)
    assert first.tags == ("Engines", "Petrol", "Diesel & Petrol Engines") and "/07076051.mp3" in first.location
    assert second.captions == ("Busy village street",) and third.captions == ("Traffic in a busy street",)
    assert third.duration is None
    assert len(clips("bbc", tmp_path / "BBCSoundEffects.csv")) == 3


@pytest.mark.parametrize("separator", ["??", "__", "  ", " -", "\udcef\udcbf", "_"])
def test_a_bbc_file_is_called_by_description_two_characters_and_id(tmp_path, separator):
    write(tmp_path / f"French-Traffic/French-Traffic - Busy street, 3.5 m away (1960){separator}07076051.wav")
    (clip,) = clips("bbc", tmp_path)
    assert clip.id == "bbc/07076051" and clip.captions[0].startswith("Busy street, 3.5 m away (1960")
    assert clip.tags == ("French-Traffic",) and local_path(clip.location).exists()


def test_files_and_list_of_the_bbc_are_joined_by_id_and_none_is_lost(tmp_path):
    (tmp_path / "BBCSoundEffects.csv").write_text(LIST)
    listed, bare = write(tmp_path / "a/Village??07076052.wav"), write(tmp_path / "NHU05104223.wav")
    write(tmp_path / "a/Rain??00000001.wav")
    write(tmp_path / "b/Rain??00000001.wav")
    write(tmp_path / "b/no number.WAV")
    found = clips("bbc", tmp_path)
    assert len(found) == 6
    assert local_path(found[1].location) == listed and found[1].captions == ("Busy village street",)
    assert local_path(found[2].location) == bare
    assert [clip.id for clip in found[3:]] == ["bbc/00000001", "bbc/00000001#2", "bbc/b/no number.WAV"]


def test_a_bbc_file_that_a_table_lists_twice_is_one_clip(tmp_path):
    write(tmp_path / "Rain??07076051.wav")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "Rain??07076051.wav"}\n' * 2)
    assert [(clip.id, clip.captions) for clip in clips("bbc", tmp_path)] == [("bbc/07076051", ("Rain",))]


def test_a_folder_without_sounds_and_another_table_are_not_the_bbcs(tmp_path):
    with pytest.raises(BuildError, match="How to obtain it"):
        clips("bbc", tmp_path)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BuildError, match="has no column location"):
        clips("bbc", tmp_path)


# ---- Audiostock


def test_no_library_publishes_what_only_the_owner_of_an_address_should_know(tmp_path):
    secret = "https://me:pass@e.org/audio/7/play?X-Amz-Signature=pass"
    (tmp_path / "audiostock_meta.csv").write_text(f"title,tags,audio_url\nBell,bell,{secret}\n")
    (tmp_path / "WavText5K.csv").write_text(
        f"view_link,download_link,title,description,fname,tags\n{secret},{secret},Bell,,,\n"
    )
    pd.DataFrame([CROWD | {"url": secret}]).to_parquet(tmp_path / "Crowds.parquet")
    found = [clip for name in ("audiostock", "wavtext5k", "epidemic_sound") for clip in clips(name, tmp_path)]
    assert [clip.location for clip in found] == [secret] * 3
    assert "pass" not in repr([replace(clip, location="") for clip in found])


STOCK = (
    "index,title,impression,scene,purpose,tags,audio_url,audio_size\n"
    '0,"No.12 Bubble\n 02",Horror,,Video,"foam,Bubble sound,, water",https://audiostock.net/audio/1150592/play,2.0\n'
    "1,Big bell,,,,bell,https://audiostock.net/audio/7/play,1.0\n"
    "2,Nothing,,,,,,\n"
)


def test_audiostocks_titles_lose_their_number_and_nothing_else(tmp_path):
    (tmp_path / "audiostock_meta.csv").write_text(STOCK)
    bubble, bell, nothing = clips("audiostock", tmp_path)
    assert bubble.captions == ("Bubble 02",) and bubble.tags == ("foam", "Bubble sound", "water")
    assert (bubble.id, bubble.location) == ("audiostock/1150592", "https://audiostock.net/audio/1150592/play")
    assert json.loads(bubble.original)["impression"] == "Horror"
    assert bell.captions == ("Big bell",)
    assert nothing.id == "audiostock/row-3" and not local_path(nothing.location).exists()


def test_audiostocks_files_are_called_by_their_ids(tmp_path):
    (tmp_path / "audiostock_meta.csv").write_text(STOCK)
    file = write(tmp_path / "audio/7.wav")
    assert local_path(clips("audiostock", tmp_path)[1].location) == file


def test_a_table_without_titles_is_not_audiostocks(tmp_path):
    (tmp_path / "t.csv").write_text("index,tags,audio_url\n0,a,b\n")
    with pytest.raises(BuildError, match="has no column title"):
        clips("audiostock", tmp_path / "t.csv")


# ---- libraries of telling names


@pytest.mark.parametrize("name", ["free_to_use_sounds", "sonniss", "we_sound_effects", "paramount_motion"])
def test_the_caption_is_the_files_name_at_any_depth_in_any_format_and_equal_names_stay_apart(tmp_path, name):
    for file in ("a/AMB_Rain-on  roof.WAV", "b/c/AMB_Rain-on  roof.WAV", "b/Door.aiff", "License.pdf"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    found = clips(name, tmp_path)
    assert [clip.id for clip in found] == [
        f"{name}/a/AMB_Rain-on  roof.WAV", f"{name}/b/Door.aiff", f"{name}/b/c/AMB_Rain-on  roof.WAV",
    ]  # fmt: skip
    assert [clip.captions for clip in found] == [("AMB Rain on roof",), ("Door",), ("AMB Rain on roof",)]
    assert {clip.source for clip in found} == {name} and found[1].title == "Door"
