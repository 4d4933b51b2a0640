"""The contamination firewall: what evaluation corpora hold is told by id, time, name and sound; nothing else is."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import ROOT, write

from pipelines.clip import Clip, read_clips, write_clips
from pipelines.dedup import Dedup
from pipelines.disk import BuildError, write_text
from pipelines.download import Download
from pipelines.evaluation import Row, bind, contamination, distinctive, prints_path, read_index, schema
from pipelines.exclude import Exclude, read_ids
from pipelines.local import to_location
from pipelines.manifest import prepare
from pipelines.prints import write_prints
from pipelines.recording import file_stem, parse, recording_of
from pipelines.resample import Resample
from pipelines.run import part_path
from pipelines.sources import Reading, source


def index(folder: Path, *rows: Row) -> Any:
    """The lists of these rows, as stages load them."""
    columns = dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns, schema=schema()), folder / "evaluation.parquet")
    return read_index(folder / "evaluation.parquet", (repr(rows),))


def esc50(folder: Path, *names: str) -> Path:
    """ESC-50 in its published layout with these files in its table; their audio is the test's business."""
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for name in names:
        fold, recording, take, target = Path(name).stem.split("-")
        lines.append(f"{name},{fold},{target},dog_bark,True,{recording},{take}")
    write_text(folder / "esc50/meta/esc50.csv", "\n".join(lines) + "\n")
    return folder / "esc50"


def clotho(folder: Path) -> Path:
    """Clotho with one recording in two of its splits."""
    for split, names in {"development": ("a b.wav", "c d.wav"), "evaluation": ("e f.wav",), "validation": ()}.items():
        captions = ["file_name,caption_1,caption_2,caption_3,caption_4,caption_5", *(f"{n},A,B,C,D,E" for n in names)]
        write_text(folder / f"clotho/clotho_captions_{split}.csv", "\n".join(captions) + "\n")
        mark = ";" if split == "evaluation" else ","
        head = ["file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license"]
        ids = {"a b.wav": "66304", "c d.wav": "7", "e f.wav": "66304"}
        text = io.StringIO()
        writer = csv.writer(text, delimiter=mark)
        writer.writerows([head, *([n, "dog;bark", ids[n], "x", "[0, 9]", "m", "CC0"] for n in names)])
        write_text(folder / f"clotho/clotho_metadata_{split}.csv", text.getvalue())
    return folder / "clotho"


def clips_of(name: str, path: Path) -> list[Clip]:
    """A source's clips as the manifest has them."""
    prepared = prepare(source(name).clips(path, Reading()))
    return [replace(clip, recording=recording_of(clip)) for clip in prepared]


def excluded(clips: list[Clip], folder: Path, *texts: str) -> dict[str, str]:
    """{id: detail} of what Exclude rejects with these lists."""
    (stage,), lists = bind([Exclude(exclude_evaluation=texts)], folder, folder / "out/build")
    lists.write()
    done = list(stage(clips))
    assert {clip.reason for clip in done} <= {"", "evaluation-overlap"}
    return {clip.id: clip.detail for clip in done if clip.reason}


# ---- recordings


@pytest.mark.parametrize("field, text, recording", [
    ("url", "http://www.freesound.org/people/nfrae/sounds/100032/", "freesound:100032"),
    ("url", "https://freesound.org/s/100032/", "freesound:100032"),
    ("url", "http://www.freesound.org/samplesViewSingle.php?id=100032", "freesound:100032"),
    ("location", "https://cdn.freesound.org/previews/100/100032_1234-hq.mp3", "freesound:100032"),
    ("location", "https://freesound.org/apiv2/sounds/100032/download/", "freesound:100032"),
    ("location", "https://www.youtube.com/watch?app=m&v=vfY_TJq7n_U&t=3", "youtube:vfY_TJq7n_U"),
    ("url", "https://youtu.be/vfY_TJq7n_U", "youtube:vfY_TJq7n_U"),
    ("location", "file:///d/1-100032-A-0.wav", "freesound:100032"),
    ("location", "file:///d/pack.zip#ESC-10/001%20-%20Dog/1-100032-A.ogg", "freesound:100032"),
    ("location", "file:///d/fold3/100032-3-0-12.wav", "freesound:100032"),
    ("location", "https://e.org/100032__nfrae__rose_bark.WAV?x=1#t", "freesound:100032"),
    ("title", "100032__nfrae__rose-bark.wav", "freesound:100032"),
    ("location", "file:///d/YvfY_TJq7n_U.wav", "youtube:vfY_TJq7n_U"),
])  # fmt: skip
def test_a_recording_is_told_by_its_page_its_address_or_its_name(field, text, recording):
    assert recording_of(Clip("x/1", "x", **{field: text})) == recording


@pytest.mark.parametrize("field, text", [
    ("location", "file:///d/64760.wav"), ("location", "file:///d/2019-1-12-03.wav"), ("location", "file:///d/1-12-A.wav"),
    ("location", "file:///d/Yellow_birds.wav"), ("location", "file:///d/YellowCar_01.wav"), ("title", "3__2"),
    ("url", "https://freesound.org/people/nfrae/packs/100032/"), ("url", "https://youtube.com/channel/vfY_TJq7n_U"),
    ("url", "https://www.youtube.com/watch?v=vfY_TJq7n_Uxx"), ("title", "watch freesound 100032"), ("location", ""),
])  # fmt: skip
def test_what_is_only_like_a_recordings_name_is_none(field, text):
    assert recording_of(Clip("x/1", "x", **{field: text})) == ""


def test_a_section_of_a_video_is_part_of_its_recording():
    clip = Clip("x/1", "x", location="https://youtu.be/vfY_TJq7n_U", start=30.0, end=40.5)
    assert recording_of(clip) == "youtube:vfY_TJq7n_U#30-40.5"
    assert parse("youtube:a-b#30-40.5") == ("youtube:a-b", 30.0, 40.5)
    assert parse("youtube:a-b#30-") == ("youtube:a-b", 30.0, np.inf) and parse("freesound:7") == (
        "freesound:7",
        0,
        np.inf,
    )


def test_the_source_knows_its_recordings_best():
    assert recording_of(Clip("x/1", "x", recording="freesound:1", url="https://freesound.org/s/2/")) == "freesound:1"


def test_a_files_name_is_compared_without_its_audio_extension_only():
    assert file_stem("file:///a/blues.00001.AU") == file_stem("https://e.org/x/blues.00001?k=v.wav") == "blues.00001"
    assert file_stem("file:///a/p.zip#in/100%25.wav") == "100%" and file_stem("https://e.org/") == ""


@pytest.mark.parametrize("name, yes", [
    ("1-100032-a-0", True), ("blues.00001", True), ("red car", True), ("64760", False), ("123456789", False),
    ("dog 1", False), ("thunder", False),
])  # fmt: skip
def test_only_a_distinctive_file_name_proves_anything(name, yes):
    assert distinctive(name) is yes


# ---- by ids, times and names


def test_sections_of_a_video_overlap_in_time_only(tmp_path):
    found = index(tmp_path, Row("audiocaps", "audiocaps/v#30-40", "recording", "youtube:v", 30.0, 40.0))
    for section, why in {
        "#39-49": True,
        "#30-40": True,
        "": True,
        "#40-50": False,
        "#20-30": False,
        "#35-": True,
    }.items():
        assert bool(found.overlap(Clip("x/1", "x", recording=f"youtube:v{section}"))) is why, section
    assert found.overlap(Clip("x/1", "x", recording="youtube:w")) == ""
    detail = found.overlap(Clip("x/1", "x", recording="youtube:v#39-49"))
    assert detail == "recording youtube:v#39-49 overlaps audiocaps/v#30-40"


def test_a_recording_whose_section_nobody_knows_overlaps_every_section(tmp_path):
    found = index(tmp_path, Row("wavcaps", "wavcaps/Yv", "recording", "youtube:v", 0.0, np.inf))
    assert found.overlap(Clip("x/1", "x", recording="youtube:v#500-510"))


def test_a_name_does_not_speak_against_ids_of_the_same_site(tmp_path):
    rows = [
        Row("clotho", "clotho/e", "recording", "freesound:1", 0.0, np.inf),
        Row("clotho", "clotho/e", "file", "red car"),
    ]
    found = index(tmp_path, *rows)
    assert found.overlap(Clip("x/1", "x", "file:///a/Red%20car.flac")) == "same file name as clotho/e"
    assert found.overlap(Clip("x/1", "x", "file:///a/Red%20car.flac", recording="freesound:2")) == ""
    assert found.overlap(Clip("x/1", "x", "file:///a/Red%20car.flac", recording="youtube:v"))


def test_esc50_is_found_by_recording_and_by_name(tmp_path):
    esc50(tmp_path, "1-100032-A-0.wav", "2-77-B-3.wav")
    clips = [
        Clip("x/1", "x", recording="freesound:100032"), Clip("x/2", "x", "file:///a/2-77-b-3.OGG"),
        Clip("x/3", "x", recording="freesound:1000"), Clip("x/4", "x", "file:///a/100032.wav"),
    ]  # fmt: skip
    assert excluded(clips, tmp_path, "esc50") == {
        "x/1": "recording freesound:100032 is esc50/1-100032-A-0", "x/2": "same file name as esc50/2-77-B-3",
    }  # fmt: skip


def test_a_corpus_with_splits_keeps_out_its_evaluation_and_all_of_it_on_request(tmp_path):
    clotho(tmp_path)
    clips = [Clip("x/1", "x", recording="freesound:66304"), Clip("x/2", "x", recording="freesound:7")]
    assert list(excluded(clips, tmp_path, "clotho")) == ["x/1"]
    assert list(excluded(clips, tmp_path, "clotho:all")) == ["x/1", "x/2"]
    assert list(excluded(clips, tmp_path, f"clotho={tmp_path / 'clotho'}")) == ["x/1"]


def test_clothos_training_clips_that_its_evaluation_holds_too_go_and_its_own_stay(tmp_path):
    clips = clips_of("clotho", clotho(tmp_path))
    assert len(clips) == 3
    (found,) = excluded(clips, tmp_path, "clotho").items()
    assert [clip.split for clip in clips if clip.id == found[0]] == ["train"]
    assert found[1].startswith("recording freesound:66304 is clotho/")


def test_a_list_spares_of_another_corpus_only_what_that_one_holds_out(tmp_path):
    esc50(tmp_path, "1-66304-A-0.wav")
    clips = clips_of("clotho", clotho(tmp_path))
    found = excluded(clips, tmp_path, "clotho", "esc50")
    assert [clip.split for clip in clips if clip.id in found] == ["train"]
    assert len(excluded(clips, tmp_path, "esc50")) == 2  # nobody named clotho


def test_a_corpus_named_twice_is_one_list_and_counted_once(tmp_path):
    esc50(tmp_path, "1-100032-A-0.wav")
    build = tmp_path / "out/build"
    texts = ("esc50", "esc50:all", f"esc50={tmp_path / 'esc50'}")
    (stage,), lists = bind([Exclude(exclude_evaluation=texts)], tmp_path, build)
    lists.write()
    write_clips(part_path(build, "exclude", 0), stage([Clip("x/1", "x", recording="freesound:100032")]))
    recipe = {"stages": {"exclude": {"exclude_evaluation": stage.exclude_evaluation}}}
    write_text(build / "recipe.json", json.dumps(recipe))
    (row,) = contamination(build)
    assert (row["name"], row["splits"], row["removed"]) == ("esc50", "all", {"recording": 1})
    assert len(lists.known) == 2 and lists.table.num_rows == len(set(map(str, lists.table.to_pylist())))


def test_esc10_through_csv_is_rejected_whole_by_the_list_of_esc50_and_by_ids(tmp_path, shared):
    clips = clips_of("csv", shared / "data/esc10/metadata.csv")
    names = [f"{Path(clip.location).stem}-0.wav" for clip in clips]
    esc50(tmp_path, *names[::2])
    found = excluded(clips, tmp_path, f"esc50={tmp_path / 'esc50/meta/esc50.csv'}")
    kept = {clip.recording for clip in clips if clip.id not in found}
    assert len(found) >= 160 and not kept & {clip.recording for clip in clips[::2]}
    (tmp_path / "ids.txt").write_text("\n".join(sorted({clip.recording.removeprefix("freesound:") for clip in clips})))
    done = list(Exclude(exclude_ids=read_ids(tmp_path / "ids.txt"))(clips))
    assert {clip.reason for clip in done} == {"evaluation-overlap"} and len(done) == 320


def test_sections_of_audiocaps_validation_are_found_in_audioset_and_its_own_build_keeps_them(tmp_path, shared):
    table = shared / "data/audiocaps/val.csv"
    own = clips_of("audiocaps", table)
    assert len(own) == 495 and excluded(own, tmp_path, f"audiocaps={table}") == {}
    keys = [parse(clip.recording) for clip in own]
    strangers = [
        Clip(f"audioset/{name}{shift}", "audioset", recording=f"{name}#{start + shift:g}-{end + shift:g}")
        for name, start, end in keys for shift in (5.0, 10.0)
    ]  # fmt: skip
    found = excluded(strangers, tmp_path, f"audiocaps={table}")
    assert len(found) == 495 and all(id.endswith("5.0") for id in found)


def test_a_list_of_ids_names_recordings_with_or_without_their_site(tmp_path):
    (tmp_path / "ids.txt").write_text("freesound:1\n2\nyoutube:v\n")
    ids = read_ids(tmp_path / "ids.txt")
    recordings = ("freesound:1", "freesound:2", "youtube:v#3-4", "youtube:2#0-1", "freesound:12", "")
    done = Exclude(exclude_ids=ids)(Clip(f"x/{name}", "x", recording=name) for name in recordings)
    assert [bool(clip.reason) for clip in done] == [True, True, True, True, False, False]


def test_a_blacklist_of_wavcaps_is_a_list_of_ids(tmp_path):
    (tmp_path / "blacklist.json").write_text('{"AudioSet": ["YvfY_TJq7n_U.wav"], "FreeSound": ["100032"]}')
    ids = read_ids(tmp_path / "blacklist.json")
    assert ids == ("freesound:100032", "youtube:vfY_TJq7n_U")


@pytest.mark.parametrize("text, said", [
    ("csv", "no evaluation corpus"), ("esc5O", "no evaluation corpus"), ("esc50:train", "want esc50, or esc50:all"),
    ("urbansound8k", "there is no .*/urbansound8k. Say where with urbansound8k=FOLDER; "), ("esc50=nowhere", "nowhere"),
])  # fmt: skip
def test_a_list_that_cannot_be_had_is_an_error_before_anything_is_written(tmp_path, text, said):
    with pytest.raises(BuildError, match=said):
        excluded([], tmp_path, text)
    assert not (tmp_path / "out").exists()


def test_a_remote_input_has_no_usual_place_beside_it(tmp_path):
    with pytest.raises(BuildError, match="esc50=FOLDER"):
        bind([Exclude(exclude_evaluation=("esc50",))], None, tmp_path)


def test_a_list_that_holds_nothing_is_an_error(tmp_path):
    esc50(tmp_path)
    with pytest.raises(BuildError, match="nothing to compare"):
        excluded([], tmp_path, "esc50")


def test_the_recipe_knows_lists_by_what_they_hold_and_not_by_their_place(tmp_path):
    esc50(tmp_path / "a", "1-100032-A-0.wav")
    write(esc50(tmp_path / "b", "1-100032-A-0.wav") / "audio/1-100032-A-0.wav")  # its sound changes nothing here
    esc50(tmp_path / "c", "1-100033-A-0.wav")
    known = []
    for folder in "abc":
        (stage,), _ = bind([Exclude(exclude_evaluation=("esc50",))], tmp_path / folder, tmp_path / "out/build")
        known.append(stage.exclude_evaluation)
    assert known[0] == known[1] != known[2] and known[0][0].startswith("esc50 ")


def test_lists_are_read_again_only_when_a_corpus_has_changed(tmp_path):
    esc50(tmp_path, "1-100032-A-0.wav")
    line = [Exclude(exclude_evaluation=("esc50",))], tmp_path, tmp_path / "out/build"
    first = bind(*line)[1]
    first.write()
    prints_path(first.path).touch()
    second = bind(*line)[1]
    second.write()
    assert second.table is None and second.known == first.known and prints_path(first.path).exists()
    esc50(tmp_path, "1-100033-A-0.wav")
    third = bind(*line)[1]
    third.write()
    assert third.known != first.known and not prints_path(first.path).exists()


def test_a_corpus_that_was_moved_is_listed_where_it_is_now_and_its_fingerprints_hold(tmp_path):
    write(esc50(tmp_path, "1-100032-A-0.wav") / "audio/1-100032-A-0.wav")
    stages, build = [Exclude(), Resample()], tmp_path / "out/build"
    first = bind([replace(stages[0], exclude_evaluation=("esc50",)), stages[1]], tmp_path, build)[1]
    first.write()
    prints_path(first.path).touch()
    (tmp_path / "esc50").rename(tmp_path / "moved")
    moved = replace(stages[0], exclude_evaluation=(f"esc50={tmp_path / 'moved'}",))
    second = bind([moved, stages[1]], tmp_path, build)[1]
    second.write()
    assert second.heard == first.heard and second.known == first.known  # nothing is redone
    places = pq.read_table(second.path, filters=[("kind", "=", "audio")])["value"].to_pylist()
    assert [Path(place).parent for place in places] == [Path(f"file:{tmp_path}/moved/audio")]
    assert prints_path(second.path).exists()


# ---- languages and licences


def test_captions_in_other_languages_go_and_a_clip_without_any_left_is_rejected():
    german, english = (
        "Ein Hund bellt laut in der Nacht vor dem Haus.",
        "A dog barks loudly at night in front of the house.",
    )
    clips = [
        Clip("x/1", "x", captions=(german, english)), Clip("x/2", "x", captions=(german,)), Clip("x/3", "x"),
        Clip("x/4", "x", captions=("dog",)), Clip("x/5", "x", captions=(english,), language="de"),
    ]  # fmt: skip
    one, two, three, four, five = Exclude(languages=("en",))(clips)
    assert (one.captions, one.language) == ((english,), "en")
    assert (two.reason, two.detail) == ("language", "captions in de") and five.reason == "language"
    assert three.reason == four.reason == "" and four.captions == ("dog",)
    assert [clip.language for clip in Exclude()(clips)][1:] == ["de", "", "", "de"]
    with pytest.raises(BuildError, match="ISO 639"):
        Exclude(languages=("English",))


def test_captions_too_short_to_tell_alone_are_told_together():
    clip = Clip("x/1", "x", captions=("dem Dach im", "Hund bellt"))
    (german,), (kept,) = Exclude(languages=("en",))([clip]), Exclude(languages=("de",))([clip])
    assert (german.reason, german.detail) == ("language", "captions together in de")
    assert (kept.reason, kept.language, kept.captions) == ("", "de", clip.captions)


def test_a_family_of_licences_admits_its_versions():
    clips = [Clip(f"x/{name}", "x", license=name) for name in ("CC-BY-3.0", "CC-BY-NC-3.0", "CC0-1.0", "")]
    done = Exclude(licenses=("CC0", "CC-BY"))(clips)
    assert [clip.reason for clip in done] == ["", "license", "", "license"]


# ---- by sound


def esc10_clip(shared: Path, name: str) -> np.ndarray:
    """A clip of ESC-10 at 44.1 kHz."""
    (path,) = (shared / "data/esc10").glob(f"*/{name}.ogg")
    return soundfile.read(path, dtype="float32")[0]


def through(folder: Path, paths: list[Path], dedup: str, *ids: str) -> tuple[dict[str, tuple[str, str]], list[dict]]:
    """{file: (reason, detail)} and the account of a build of these files that keeps out ESC-50 by sound."""
    build = folder / "out/build"
    stages, lists = bind([Exclude(exclude_evaluation=("esc50",)), Download(), Resample(),
                          Dedup(dedup, exclude_evaluation=("esc50",))], folder, build)  # fmt: skip
    lists.write()
    clips = [
        Clip(id, id.partition("/")[0], to_location(path), captions=("a",)) for path, id in zip(paths, ids, strict=True)
    ]
    clips = list(stages[0](clips))
    write_clips(part_path(build, "exclude", 0), clips)
    (folder / "pack").write_bytes(b"")
    with (folder / "pack").open("r+b") as pack:
        clips = list(Resample()(list(Download()(clips, pack, folder / "raw")), pack, folder / "raw"))
    write_clips(part_path(build, "resample", 0), clips)
    stage = stages[3].gather([part_path(build, "resample", 0)], build / "dedup/verdicts.parquet")
    done = list(stage(clips))
    write_clips(part_path(build, "dedup", 0), done)
    write_text(build / "recipe.json", '{"stages": {"exclude": {"exclude_evaluation": ["esc50 x"]}}}')
    return {path.name: (clip.reason, clip.detail) for path, clip in zip(paths, done, strict=True)}, contamination(build)


def evaluation_audio(folder: Path, shared: Path, *names: str) -> Path:
    """ESC-50's folder with these clips of ESC-10 as its audio (WAV, under ESC-50's names)."""
    home = esc50(folder, *(f"{name}-0.wav" for name in names))
    (home / "audio").mkdir()
    for name in names:
        soundfile.write(home / f"audio/{name}-0.wav", esc10_clip(shared, name), 44_100)
    return home


@pytest.mark.parametrize("dedup", ["none", "exact", "near"])
def test_evaluation_audio_is_found_under_another_name_and_codec_and_inside_longer_recordings(tmp_path, shared, dedup):
    home = evaluation_audio(tmp_path, shared, "1-100032-A", "1-17367-A")
    rain, stranger = (esc10_clip(shared, name) for name in ("1-17367-A", "1-17565-A"))
    names = ("x.wav", "y.mp3", "z.mp3", "long.ogg", "other.wav", "other2.wav", "x.flac", "y2.mp3")
    sounds = [tmp_path / "in" / name for name in names]
    sounds[0].parent.mkdir()
    shutil.copy(home / "audio/1-17367-A-0.wav", sounds[0])
    soundfile.write(sounds[1], rain, 44_100, format="MP3", subtype="MPEG_LAYER_III")
    soundfile.write(sounds[2], rain * 0.5, 44_100, format="MP3", subtype="MPEG_LAYER_III")
    soundfile.write(sounds[3], np.concatenate([stranger, rain, stranger[::-1]]), 44_100, format="OGG", subtype="VORBIS")
    soundfile.write(sounds[4], stranger, 44_100)
    soundfile.write(sounds[5], stranger, 44_100)
    soundfile.write(sounds[6], soundfile.read(sounds[0], dtype="int16")[0], 44_100)
    shutil.copy(sounds[1], sounds[7])
    found, account = through(tmp_path, sounds, dedup, *(f"csv/{number}" for number in range(8)))
    assert found["x.wav"] == ("evaluation-overlap", "same bytes as esc50/1-17367-A-0")
    assert found["x.flac"] == ("evaluation-overlap", "same samples as esc50/1-17367-A-0")
    assert found["y2.mp3"][0] == "evaluation-overlap" and "sounds like esc50/1-17367-A-0" in found["y2.mp3"][1]
    for name in ("y.mp3", "z.mp3", "long.ogg"):
        assert found[name][0] == "evaluation-overlap", name
        assert found[name][1].startswith("sounds like esc50/1-17367-A-0 (bit error rate 0."), name
    assert found["other.wav"] == ("", "") and found["other2.wav"][0] == ("" if dedup == "none" else "duplicate")
    assert account == [{
        "name": "esc50", "splits": "validation and test; all of a corpus with folds",
        "compared": {"clips": 2, "recordings": 2, "file names": 2, "audio": 2},
        "removed": {"same bytes": 1, "same samples": 1, "sounds like": 4},
    }]  # fmt: skip


def test_a_corpus_that_is_built_keeps_its_own_clips_also_in_another_codec(tmp_path, shared):
    home = evaluation_audio(tmp_path, shared, "1-100032-A", "1-17367-A")
    paths = [home / "audio/1-100032-A-0.wav", tmp_path / "rain.mp3", tmp_path / "copy.wav"]
    soundfile.write(paths[1], esc10_clip(shared, "1-17367-A"), 44_100, format="MP3", subtype="MPEG_LAYER_III")
    shutil.copy(paths[0], paths[2])
    found, _ = through(tmp_path, paths, "exact", "esc50/1-100032-A-0", "esc50/1-17367-A-0", "csv/copy")
    assert found["1-100032-A-0.wav"] == found["rain.mp3"] == ("", "")
    assert found["copy.wav"] == ("evaluation-overlap", "same bytes as esc50/1-100032-A-0")


def test_fingerprints_of_evaluation_audio_are_made_once_and_what_cannot_be_read_is_no_clip(tmp_path, shared):
    home = evaluation_audio(tmp_path, shared, "1-100032-A", "1-17367-A")
    (home / "audio/1-17367-A-0.wav").write_bytes(b"RIFFbroken")
    sound = write(tmp_path / "in/tone.wav", seconds=3)
    _, account = through(tmp_path, [sound], "none", "csv/1")
    assert account[0]["compared"]["audio"] == 1 and account[0]["removed"] == {}
    written = (tmp_path / "out/build/evaluation-prints.parquet").stat().st_mtime_ns
    (tmp_path / "out/build/dedup/verdicts.parquet").unlink()
    through(tmp_path, [sound], "none", "csv/1")
    assert (tmp_path / "out/build/evaluation-prints.parquet").stat().st_mtime_ns == written


def listed(folder: Path) -> Path:
    """The lists of a build that keeps out ESC-50 by sound."""
    stages = [Exclude(exclude_evaluation=("esc50",)), Resample()]
    lists = bind(stages, folder, folder / "out/build")[1]
    lists.write()
    return lists.path


def test_audio_that_was_listed_and_is_gone_or_all_unreadable_ends_the_run(tmp_path, shared):
    home = evaluation_audio(tmp_path, shared, "1-100032-A", "1-17367-A")
    lists, sound = listed(tmp_path), home / "audio/1-17367-A-0.wav"
    sound.rename(tmp_path / "elsewhere.wav")
    with pytest.raises(BuildError, match=r"1-17367-A-0\.wav of esc50 cannot be read any more"):
        write_prints(lists)
    (tmp_path / "elsewhere.wav").rename(sound)  # put back, it is measured
    for path in home.glob("audio/*"):
        path.write_bytes(b"RIFFbroken")
    with pytest.raises(BuildError, match="no sound of esc50 could be read"):
        write_prints(lists)
    assert not prints_path(lists).exists()


CRASHING = """
import faulthandler, sys
from pathlib import Path
from pipelines import prints, resample
def opened(window, *section, open_audio=resample.open_audio):
    return faulthandler._sigsegv() if "1-17367-A" in str(window.path) else open_audio(window, *section)
resample.open_audio = opened
prints.write_prints(Path(sys.argv[1]))
"""


def test_evaluation_audio_on_which_a_decoder_crashes_costs_that_clip_only(tmp_path, shared):
    evaluation_audio(tmp_path, shared, "1-100032-A", "1-17367-A", "1-17565-A")
    lists = listed(tmp_path)
    line = [sys.executable, "-c", CRASHING, str(lists)]
    codes = [subprocess.run(line, cwd=ROOT, capture_output=True).returncode for _ in range(2)]
    assert codes == [-signal.SIGSEGV, 0]
    assert [clip.reason for clip in read_clips(prints_path(lists))] == ["", "decoder-crashed", ""]
    assert not (lists.parent / "evaluation").exists()


def test_what_a_list_holds_out_is_not_compared_with_the_sounds_of_another(tmp_path, shared):
    home = evaluation_audio(tmp_path, shared, "1-100032-A")
    lists = tmp_path / "evaluation.parquet"
    rows = [Row("clotho", id, "file", id) for id in ("clotho/1", "clotho/2")]
    rows.append(Row("esc50", "esc50/1-100032-A-0", "audio", to_location(home / "audio/1-100032-A-0.wav")))
    pq.write_table(pa.Table.from_pylist([row._asdict() for row in rows], schema=schema()), lists)
    (print_,) = read_clips(write_prints(lists))
    copy = replace(print_, sha256="", captions=("a",))
    clips = [
        replace(copy, id="clotho/1", source="clotho", split="test", sha256=print_.sha256),
        replace(copy, id="clotho/2", source="clotho", split="test", pcm_md5=""),
        replace(copy, id="clotho/3", source="clotho", split="test"),  # on no list
        replace(copy, id="clotho/4", source="clotho", split="train"),
    ]
    write_clips(tmp_path / "part-0.parquet", clips)
    stage = Dedup("none", lists=lists).gather([tmp_path / "part-0.parquet"], tmp_path / "verdicts.parquet")
    assert [clip.reason for clip in stage(clips)] == ["", "", "evaluation-overlap", "evaluation-overlap"]


def test_a_published_list_alone_is_not_compared_by_sound(tmp_path, shared):
    home = evaluation_audio(tmp_path, shared, "1-100032-A")
    stages = [Exclude(exclude_evaluation=(f"esc50={home}/meta/esc50.csv",)), Resample(), Dedup()]
    _, lists = bind(stages, tmp_path, tmp_path / "out/build")
    assert lists.heard == () and lists.table is not None and "audio" not in lists.table["kind"].to_pylist()
