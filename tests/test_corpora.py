"""Corpora by which models are measured, each read from a few rows in the layout in which it is published."""

import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write

from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.local import to_location
from pipelines.manifest import prepare
from pipelines.sources import Reading, source

ESC50 = "filename,fold,target,category,esc10,src_file,take\n"
LICENSE = """## Licensing/attribution details for individual clips:

101 - Dog:
- [1-100032-A.ogg]: clip derived from rose (bark).wav (http://www.freesound.org/people/nfrae/sounds/100032/) by nfrae [CC0]
- [5-9032-A.ogg]:  clip derived from Dog bark2.wav (http://www.freesound.org/people/M/sounds/9032/) by A b [CC-Sampling+]
"""  # noqa: E501 - as published
URBAN = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
FSD_DEV = 'fname,labels,mids,split\n64760,"Purr,Cat","/m/02yds9,/m/01yrx",train\n16399,Chirp_and_tweet,,val\n'
CLOTHO = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
CLOTHO_META = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
MACS = """files:
- filename: airport-lisbon-1000-40000-a.wav
  annotations:
  - annotator_id: 1
    sentence: Adults talking, footsteps nearby
    tags: [adults_talking, footsteps]
  - annotator_id: 2
    sentence: People walk by
    tags: [footsteps]
- filename: park-london-1-2-b.wav
  annotations:
  - {annotator_id: 3, sentence: "Birds: many", tags: [birds_singing]}
  - {annotator_id: 4, sentence: "", tags: []}
"""


def clips(name: str, path: Path) -> list[Clip]:
    return list(prepare(source(name).clips(path, Reading())))


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding=encoding)
    return path


# ---- ESC-50


def esc50(root: Path) -> Path:
    text(
        root / "meta/esc50.csv",
        ESC50 + "1-100032-A-0.wav,1,0,dog,True,100032,A\n1-2-B-37.wav,5,37,clock_alarm,False,2,B\n",
    )
    write(root / "audio/1-100032-A-0.wav")
    return root


def test_an_esc50_clip_has_its_class_fold_recording_and_credit(tmp_path):
    text(esc50(tmp_path) / "LICENSE", LICENSE)
    dog, clock = clips("esc50", tmp_path)
    assert (dog.id, dog.labels, dog.tags, dog.fold, dog.split) == ("esc50/1-100032-A-0", ("dog",), ("dog",), 1, "train")
    assert (dog.title, dog.author, dog.license, dog.url) == (
        "rose (bark).wav",
        "nfrae",
        "CC0-1.0",
        "http://www.freesound.org/people/nfrae/sounds/100032/",
    )
    assert dog.recording == "freesound:100032" and json.loads(dog.original)["take"] == "A" and dog.size
    assert clock.labels == ("clock alarm",) and clock.fold == 5 and clock.captions == ()
    assert clock.location == to_location(tmp_path / "audio/1-2-B-37.wav")


def test_esc50_without_its_license_file_is_under_the_licence_of_the_whole(tmp_path):
    licenses = [clip.license for clip in clips("esc50", esc50(tmp_path))]
    assert licenses == ["CC-BY-3.0", "CC-BY-NC-3.0"]  # of the ESC-10 part, of the rest


def test_the_table_alone_tells_the_recordings_of_esc50(tmp_path):
    table = text(tmp_path / "esc50.csv", ESC50 + "1-100032-A-0.wav,1,0,dog,True,100032,A\n")
    assert [clip.recording for clip in clips("esc50", table)] == ["freesound:100032"]


def test_esc50_is_found_in_the_folder_around_it_and_its_audio_in_the_zip(tmp_path):
    text(tmp_path / "ESC-50-master/meta/esc50.csv", ESC50 + "1-1-A-0.wav,1,0,dog,True,1,A\n")
    with zipfile.ZipFile(tmp_path / "ESC-50-master/ESC-50-master.zip", "w") as archive:
        archive.writestr("ESC-50-master/audio/1-1-A-0.wav", write(tmp_path / "x.wav").read_bytes())
    (clip,) = clips("esc50", tmp_path)
    assert clip.location.endswith("ESC-50-master.zip#ESC-50-master/audio/1-1-A-0.wav")


def test_a_corpus_that_is_not_there_says_how_to_obtain_it(tmp_path):
    for name in ("esc50", "urbansound8k", "gtzan", "fsd50k", "clotho", "macs"):
        with pytest.raises(BuildError, match="How to obtain it"):
            clips(name, tmp_path)


def test_a_table_without_its_columns_is_a_sentence(tmp_path):
    with pytest.raises(BuildError, match="has no column fold, category, src_file"):
        clips("esc50", text(tmp_path / "meta/esc50.csv", "filename,target\na.wav,1\n").parents[1])


# ---- UrbanSound8K


def test_urbansound8k_start_and_end_are_of_the_recording_and_not_of_the_clip(tmp_path):
    rows = "100263-2-0-117.wav,100263,58.5,62.5,1,10,2,children_playing\n"
    text(tmp_path / "metadata/UrbanSound8K.csv", URBAN + rows)
    write(tmp_path / "audio/fold10/100263-2-0-117.wav")
    (clip,) = clips("urbansound8k", tmp_path)
    assert (clip.start, clip.end, clip.fold, clip.split) == (None, None, 10, "train")
    assert clip.location == to_location(tmp_path / "audio/fold10/100263-2-0-117.wav") and clip.size
    assert (clip.id, clip.labels) == ("urbansound8k/100263-2-0-117", ("children playing",))
    assert clip.recording == "freesound:100263" and json.loads(clip.original)["start"] == "58.5"


def test_urbansound8k_beside_its_archive_is_read_only_if_the_archive_is_the_published_one(tmp_path):
    text(tmp_path / "UrbanSound8K/metadata/UrbanSound8K.csv", URBAN + "1-2-0-0.wav,1,0,1,1,1,2,siren\n")
    assert len(clips("urbansound8k", tmp_path)) == 1
    with tarfile.open(tmp_path / "UrbanSound8K.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    with pytest.raises(BuildError, match="is not the published file"):
        clips("urbansound8k", tmp_path)
    assert len(clips("urbansound8k", tmp_path / "UrbanSound8K/metadata/UrbanSound8K.csv")) == 1  # needs no audio


# ---- GTZAN


def test_gtzan_is_its_tree_and_the_corrupt_clip_stays_a_row(tmp_path):
    write(tmp_path / "genres/blues/blues.00000.au")
    text(tmp_path / "genres/jazz/jazz.00054.au", "corrupt")
    text(tmp_path / "genres/jazz/._jazz.00054.au", "left by a Mac")
    blues, jazz = clips("gtzan", tmp_path)
    assert (blues.id, blues.labels, blues.captions) == (
        "gtzan/blues.00000",
        ("blues",),
        ("This audio is a blues song.",),
    )
    assert (jazz.id, jazz.reason) == ("gtzan/jazz.00054", "")


def test_gtzan_is_read_from_its_archive_and_from_the_later_tree(tmp_path):
    write(tmp_path / "later/genres_original/rock/rock.00001.wav")
    assert [clip.labels for clip in clips("gtzan", tmp_path / "later")] == [("rock",)]
    with tarfile.open(tmp_path / "genres.tar.gz", "w:gz") as archive:
        archive.add(write(tmp_path / "x.au"), "genres/pop/pop.00007.au")
    (clip,) = clips("gtzan", tmp_path)
    assert clip.id == "gtzan/pop.00007" and clip.location.endswith("genres.tar.gz#genres/pop/pop.00007.au")


def test_gtzan_takes_no_file(tmp_path):
    with pytest.raises(BuildError, match="has no table"):
        clips("gtzan", text(tmp_path / "gtzan.csv", "a\n"))


# ---- FSD50K


def fsd50k(root: Path) -> Path:
    text(root / "FSD50K.ground_truth/dev.csv", FSD_DEV)
    text(
        root / "FSD50K.ground_truth/eval.csv", 'fname,labels,mids\n37199,"Electric_guitar,Music","/m/02sgy,/m/04rlf"\n'
    )
    info = {"title": "Kitty", "description": "Purrs", "tags": ["cat", "Purr"], "uploader": "ann",
            "license": "http://creativecommons.org/licenses/by/3.0/"}  # fmt: skip
    text(root / "FSD50K.metadata/dev_clips_info_FSD50K.json", json.dumps({"64760": info}))
    return root


def test_fsd50k_keeps_its_splits_labels_in_their_order_and_what_is_known_of_each_clip(tmp_path):
    write(fsd50k(tmp_path) / "FSD50K.dev_audio/64760.wav")
    cat, bird, guitar = clips("fsd50k", tmp_path)
    assert [clip.split for clip in (cat, bird, guitar)] == ["train", "validation", "test"]
    assert (cat.id, cat.labels, cat.tags) == ("fsd50k/64760", ("Purr", "Cat"), ("Purr", "Cat", "cat"))
    assert (cat.title, cat.author, cat.license) == ("Kitty", "ann", "CC-BY-3.0")
    assert cat.recording == "freesound:64760" and json.loads(cat.original)["description"] == "Purrs" and cat.size
    assert guitar.labels == ("Electric guitar", "Music") and guitar.license == ""


def test_a_row_without_mids_keeps_its_own_labels(tmp_path):
    _, bird, _ = clips("fsd50k", fsd50k(tmp_path))
    assert bird.labels == ("Chirp and tweet",)  # LAION: those of the row before


def test_fsd50k_reads_the_same_every_time(tmp_path):
    assert clips("fsd50k", fsd50k(tmp_path)) == clips("fsd50k", tmp_path)  # LAION: labels in the order of a set


def test_one_table_of_fsd50k_is_read_by_itself(tmp_path):
    table = fsd50k(tmp_path) / "FSD50K.ground_truth/eval.csv"
    assert [(clip.id, clip.split) for clip in clips("fsd50k", table)] == [("fsd50k/37199", "test")]
    with pytest.raises(BuildError, match=r"neither dev.csv nor eval.csv"):
        clips("fsd50k", text(tmp_path / "vocabulary.csv", "0,Cat,/m/01yrx\n"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("fname,labels,mids\n1,Purr,\n", "has no column split"),
        ("fname,labels,split\n1,Purr,valid\n", "the split 'valid'"),
    ],
)
def test_fsd50k_does_not_guess_a_split(tmp_path, rows, said):
    with pytest.raises(BuildError, match=said):
        clips("fsd50k", text(tmp_path / "dev.csv", rows))


def test_odd_tags_of_fsd50k_are_no_traceback(tmp_path):
    info = {"64760": {"tags": 5}, "16399": {"tags": "bird"}}
    text(fsd50k(tmp_path) / "FSD50K.metadata/dev_clips_info_FSD50K.json", json.dumps(info))
    assert [clip.tags[-1] for clip in clips("fsd50k", tmp_path)][:2] == ["5", "bird"]


def test_a_quote_that_is_never_closed_ends_the_reading_of_a_corpus(tmp_path):
    rows = 'a.wav,"One,2,3,4,5\nb.wav,1,2,3,4,5\nc.wav,1,2,3,4,5\nd.wav,"One",2,3,4,5\n'
    with pytest.raises(BuildError, match="a quote is not closed"):
        clips("clotho", text(tmp_path / "clotho_captions_development.csv", CLOTHO + rows))


def test_a_broken_info_file_is_a_sentence(tmp_path):
    text(fsd50k(tmp_path) / "FSD50K.metadata/dev_clips_info_FSD50K.json", '{"64760": {')
    with pytest.raises(BuildError, match=r"fetch FSD50K.metadata.zip again"):
        clips("fsd50k", tmp_path)


# ---- Clotho


def clotho(root: Path) -> Path:
    for split, name in (("development", "Radio"), ("validation", "Trein"), ("evaluation", "Caf\xe9")):
        text(root / f"clotho_captions_{split}.csv", CLOTHO + f"{name}.wav,One,Two,Three,Four,Five\n")
        row = f'{name}.wav,noise;radio,86161,https://freesound.org/s/86161,"[0, 9]",J\xfcrgen,CC0\n'
        text(root / f"clotho_metadata_{split}.csv", CLOTHO_META + row, "latin-1")
    return root


def test_clotho_keeps_its_official_splits_and_five_captions(tmp_path):
    write(clotho(tmp_path) / "development/Radio.wav")
    radio, train, cafe = clips("clotho", tmp_path)
    assert [clip.split for clip in (radio, train, cafe)] == ["train", "validation", "test"]  # LAION swapped two
    assert radio.captions == ("One", "Two", "Three", "Four", "Five") and radio.tags == ("noise", "radio")
    assert (radio.author, radio.license, radio.url) == ("J\xfcrgen", "CC0-1.0", "https://freesound.org/s/86161")
    assert radio.location == to_location(tmp_path / "development/Radio.wav") and radio.size
    assert cafe.id == "clotho/evaluation/Caf\xe9.wav" and cafe.tags == ("noise", "radio")


def test_clotho_is_found_in_the_layout_of_other_tools(tmp_path):
    tables = clotho(tmp_path / "CLOTHO_v2.1/clotho_csv_files")
    write(tables.parent / "clotho_audio_files/development/Radio.wav")
    assert [bool(clip.size) for clip in clips("clotho", tmp_path)] == [True, False, False]


def test_a_recording_in_several_splits_of_clotho_stays_a_row_in_each(tmp_path):
    assert [clip.recording for clip in clips("clotho", clotho(tmp_path))] == ["freesound:86161"] * 3


def test_a_clotho_sound_whose_id_was_not_found_has_no_recording(tmp_path):
    text(tmp_path / "clotho_captions_development.csv", CLOTHO + "a.wav,One,Two,Three,Four,\n")
    text(tmp_path / "clotho_metadata_development.csv", CLOTHO_META + "a.wav,,Not found,NA,NA,NA,NA\n")
    (clip,) = clips("clotho", tmp_path)
    assert (clip.recording, clip.url, clip.tags, len(clip.captions)) == ("", "", (), 4)


def test_metadata_of_the_challenge_are_separated_by_semicolons(tmp_path):
    head = "file_name;sound_id;sound_link;start_end_samples;manufacturer;license\n"
    table = text(
        tmp_path / "clotho_metadata_test.csv",
        head + "a, b.wav;7;https://freesound.org/s/7;[0, 9];m\xe9;CC0\n",
        "latin-1",
    )
    (clip,) = clips("clotho", table)
    assert (clip.id, clip.recording, clip.author) == ("clotho/test/a, b.wav", "freesound:7", "m\xe9")


def test_metadata_alone_tell_the_recordings_of_clotho(tmp_path):
    for path in clotho(tmp_path).glob("clotho_captions_*"):
        path.unlink()
    found = clips("clotho", tmp_path)
    assert [clip.recording for clip in found] == ["freesound:86161"] * 3 and found[2].split == "test"


def test_a_table_that_is_not_the_published_one_is_told_of_and_read(tmp_path, capsys):
    clips("clotho", clotho(tmp_path))
    assert "clotho_captions_development.csv is not the published file (MD5" in capsys.readouterr().err


# ---- MACS


def test_macs_has_the_sentences_of_all_who_listened_and_each_tag_once(tmp_path):
    text(tmp_path / "MACS.yaml", MACS)
    write(tmp_path / "TAU-urban-acoustic-scenes-2019-development/audio/park-london-1-2-b.wav")
    airport, park = clips("macs", tmp_path)
    assert airport.captions == ("Adults talking, footsteps nearby", "People walk by")
    assert airport.tags == ("adults talking", "footsteps")
    assert (park.id, park.captions) == ("macs/park-london-1-2-b", ("Birds: many",)) and park.size
    assert "non-commercial" in park.license


def test_the_published_zips_of_tau_are_checked(tmp_path):
    text(tmp_path / "MACS.yaml", MACS)
    with zipfile.ZipFile(tmp_path / "TAU-urban-acoustic-scenes-2019-development.audio.1.zip", "w") as archive:
        archive.writestr("a.wav", b"x")
    with pytest.raises(BuildError, match="is not the published file"):
        clips("macs", tmp_path)


def test_a_macs_file_that_is_none_is_a_sentence(tmp_path):
    with pytest.raises(BuildError, match="fetch it again"):
        clips("macs", text(tmp_path / "MACS.yaml", "files: [\n"))
    with pytest.raises(BuildError, match="no list `files`"):
        clips("macs", text(tmp_path / "MACS.yaml", "- a\n"))


def test_odd_entries_of_macs_are_no_traceback(tmp_path):
    with pytest.raises(BuildError, match="no list `files`"):
        clips("macs", text(tmp_path / "MACS.yaml", "files: 5\n"))
    odd = "files:\n- {filename: a.wav, annotations: 5}\n- {filename: b.wav, annotations: [{tags: dog_bark}]}\n"
    assert [clip.tags for clip in clips("macs", text(tmp_path / "MACS.yaml", odd))] == [(), ("dog bark",)]


def test_a_macs_entry_without_a_name_stays_a_row(tmp_path):
    (clip,) = clips("macs", text(tmp_path / "MACS.yaml", "files:\n- annotations: []\n"))
    assert clip.reason == "missing-file"


def test_what_is_read_is_the_same_from_table_and_folder(tmp_path):
    folder, table = clips("macs", text(tmp_path / "MACS.yaml", MACS).parent), clips("macs", tmp_path / "MACS.yaml")
    assert [replace(clip, location="") for clip in folder] == [replace(clip, location="") for clip in table]
