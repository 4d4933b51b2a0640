"""LAION's own release as an input: its tables, and its WebDataset tars."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import write

from pipelines.archive import open_member
from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.local import local_path, member_of
from pipelines.manifest import prepare
from pipelines.sources import Reading, source

CROWD = {
    "text": ["Wrestling Crowd", "the sounds of wrestling crowd, p.a., and loop."],
    "tag": ["Crowds", "p.a.", "loop"],
    "original_data": {"title": "Wrestling Crowd", "id": 130586, "url": "https://e.org/Wrestling%20Crowd.mp3"},
    "text_augment_t5": "p vs wrestling with a teddy bear.",
    "text_augment_all": ["Wrestling Crowd", "p vs wrestling with a teddy bear."],
}
SYNTH = {
    "text": ["DSI Tetra."],
    "tag": ["synthesizer"],
    "original_data": {
        "download_url": "https://freesound.org/apiv2/sounds/282776/download/",
        "username": "modularsamples",
        "title": "DSI Tetra.wav",
        "id": 282776,
    },
}


def clips(path: Path) -> list[Clip]:
    return list(prepare(source("laion").clips(path, Reading())))


def pack(path: Path, pairs: dict[str, Any], flac: bytes = b"fLaC") -> Path:
    """A tar of pairs as LAION makes them; a JSON of None is left out, bytes go in as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, data in pairs.items():
            content = data if isinstance(data, bytes) else json.dumps(data).encode()
            for name, body in ((f"{key}.flac", flac), (f"{key}.json", content)):
                if not (name.endswith("json") and data is None):
                    info = tarfile.TarInfo(name)
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))
    return path


def sizes(folder: Path, **counts: int) -> None:
    (folder / "sizes.json").write_text(json.dumps({f"{name}.tar": count for name, count in counts.items()}))


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_pair_of_a_tar_is_a_clip_whose_audio_is_read_where_it_lies(tmp_path):
    flac = write(tmp_path / "x.flac").read_bytes()
    tar = pack(tmp_path / "epidemic/valid/0.tar", {"fsx/e/7": CROWD}, flac)
    (clip,) = clips(tmp_path)
    assert (clip.id, clip.split) == ("laion/epidemic/valid/0/7", "validation")
    assert clip.captions == ("Wrestling Crowd", "the sounds of wrestling crowd, p.a., and loop.")
    assert clip.tags == ("Crowds", "p.a.", "loop") and clip.url == "https://e.org/Wrestling%20Crowd.mp3"
    assert json.loads(clip.original) == CROWD
    with open_member(local_path(clip.location), member_of(clip.location)) as handle:
        assert handle.read() == flac and local_path(clip.location) == tar and clip.size == len(flac)


def test_what_a_t5_wrote_is_generated_and_no_caption(tmp_path):
    pack(tmp_path / "e/train/0.tar", {"0": CROWD, "1": SYNTH, "2": {"text": ["A"], "text_augment_t5": None}})
    crowd, synth, last = clips(tmp_path)
    assert (crowd.generated, crowd.generated_by) == (("p vs wrestling with a teddy bear.",), "laion-t5")
    assert "teddy" not in " ".join(crowd.captions)
    assert synth.generated == last.generated == () and synth.generated_by == ""


def test_a_freesound_clip_in_a_tar_says_so(tmp_path):
    fsd = {
        "text": ["A harp"],
        "original_data": {"fname": "145450", "mids(class_label_id)": ["/m/03m5k"], "license": "CC0"},
    }
    pack(tmp_path / "f/test/0.tar", {"0": SYNTH, "1": fsd, "2": {"text": "One", "original_data": {"sound_id": 7}}})
    synth, harp, clotho = clips(tmp_path)
    assert (synth.recording, synth.author, synth.title) == ("freesound:282776", "modularsamples", "DSI Tetra.wav")
    assert (harp.recording, harp.license) == ("freesound:145450", "CC0-1.0")
    assert (clotho.recording, clotho.captions) == ("freesound:7", ("One",))  # BBC's `text` is a string too


def test_half_a_pair_and_a_broken_json_stay_rows_with_their_reasons(tmp_path):
    tar = pack(tmp_path / "d/train/0.tar", {"0": None, "1": b"{", "2": b"[]", "3": CROWD})
    with tarfile.open(tar, "a") as more:
        more.addfile(tarfile.TarInfo("9.json"), io.BytesIO())
    sizes(tar.parent, **{"0": 5})
    found = {clip.id.rpartition("/")[2]: clip for clip in clips(tmp_path)}
    assert {key: clip.reason for key, clip in found.items()} == {
        "0": "bad-archive-member", "1": "bad-archive-member", "2": "bad-archive-member", "3": "",
        "9": "bad-archive-member",
    }  # fmt: skip
    assert "no json" in found["0"].detail and "no audio" in found["9"].detail


def test_a_second_sound_of_a_key_is_a_row_with_its_reason(tmp_path):
    tar = pack(tmp_path / "d/train/0.tar", {"0": CROWD})
    with tarfile.open(tar, "a") as more:
        more.addfile(tarfile.TarInfo("0.wav"), io.BytesIO())
    sizes(tar.parent, **{"0": 1})
    first, second = clips(tmp_path)
    assert first.reason == "" and member_of(first.location) == "0.flac"
    assert (second.id, second.reason) == ("laion/d/train/0/0.wav", "bad-archive-member")


def test_an_export_of_clapboard_keeps_labels_fold_and_who_generated(tmp_path):
    ours = {"labels": ["dog"], "fold": 3, "generated_by": "template", "license": "CC0-1.0"}
    pack(
        tmp_path / "d/train/0.tar",
        {"0": {"text": ["A"], "tag": ["dog"], "text_augment_t5": "B", "original_data": ours}},
    )
    (clip,) = clips(tmp_path)
    assert (clip.labels, clip.fold, clip.generated_by, clip.license) == (("dog",), 3, "template", "CC0-1.0")


def test_tars_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 0):
        pack(tmp_path / f"d/train/{number}.tar", {"0": CROWD})
    assert [clip.id for clip in clips(tmp_path)] == [f"laion/d/train/{number}/0" for number in (0, 9, 10)]


def test_a_tar_with_another_number_of_pairs_than_sizes_json_says_ends_the_build(tmp_path):
    pack(tmp_path / "d/train/0.tar", {"0": CROWD})
    sizes(tmp_path / "d/train", **{"0": 512})
    with pytest.raises(BuildError, match=r"0\.tar holds 1 pairs, but its sizes.json says 512"):
        clips(tmp_path)


def test_a_tar_that_sizes_json_names_must_be_there(tmp_path):
    pack(tmp_path / "d/train/0.tar", {"0": CROWD})
    sizes(tmp_path / "d/train", **{"0": 1, "1": 512})
    with pytest.raises(BuildError, match=r"has no 1\.tar"):
        clips(tmp_path)


def test_an_unreadable_sizes_json_is_a_sentence(tmp_path):
    pack(tmp_path / "d/train/0.tar", {"0": CROWD})
    (tmp_path / "d/train/sizes.json").write_text("[1]")
    with pytest.raises(BuildError, match="delete it to count nothing"):
        clips(tmp_path)


def test_ids_of_a_tar_do_not_depend_on_the_folder_that_is_given(tmp_path):
    tar = pack(tmp_path / "d/train/0.tar", {"0": CROWD})
    given = [clips(path) for path in (tmp_path, tmp_path / "d", tar.parent, tar)]
    assert all(found == given[0] for found in given)


def test_the_table_of_epidemic_sound_has_two_captions_and_one_by_t5(tmp_path):
    path = table(
        tmp_path / "epidemic_sound.csv",
        "url,caption1,caption2,caption_t5,epidemic_id\n"
        'https://e.org/a.mp3,Wrestling Crowd,"the sounds of a, and b.",A crowd cheers.,130586\n'
        "https://e.org/b.mp3,Rain,,,130587\n",
    )
    crowd, rain = clips(path)
    assert (crowd.id, crowd.location) == ("laion/epidemic_sound/130586", "https://e.org/a.mp3")
    assert crowd.captions == ("Wrestling Crowd", "the sounds of a, and b.")
    assert (crowd.generated, crowd.generated_by) == (("A crowd cheers.",), "laion-t5")
    assert rain.captions == ("Rain",) and rain.generated == ()


def test_the_table_of_audiostock_has_addresses_and_captions_alone(tmp_path):
    (clip,) = clips(table(tmp_path / "audiostock.csv", "url,caption\nhttps://audiostock.net/a.wav?token=x,A door\n"))
    assert (clip.id, clip.captions) == ("laion/audiostock/https://audiostock.net/a.wav", ("A door",))
    assert clip.location.endswith("?token=x") and "token" not in clip.url + clip.original


def test_a_freesound_table_names_recordings_and_its_file_name_the_split(tmp_path):
    rows = {"url": ["https://freesound.org/apiv2/sounds/5/download/"], "caption1": ["Rain."], "freesound_id": [5]}
    pd.DataFrame(rows).to_parquet(tmp_path / "freesound_no_overlap_test.parquet")
    table(tmp_path / "freesound_train+test.csv", "url,caption1\nhttps://freesound.org/people/a/sounds/6/,Wind.\n")
    five, six = clips(tmp_path)
    assert (five.recording, five.split, five.url) == ("freesound:5", "test", "https://freesound.org/s/5/")
    assert six.recording == "freesound:6"
    assert [clip.split for clip in source("laion").clips(tmp_path, Reading())] == ["test", ""]  # a hash decides


def test_a_preview_of_freesound_is_credited_to_its_page(tmp_path):
    address = "https://freesound.org/data/previews/0/7_99-hq.mp3"
    assert clips(table(tmp_path / "t.csv", f"url,caption\n{address},Rain\n"))[0].url == "https://freesound.org/s/7/"


def test_a_row_without_an_address_of_the_web_is_rejected(tmp_path):
    path = table(tmp_path / "t.csv", "url,caption\n,A\nfile:///etc/passwd,B\n/etc/passwd,C\n")
    assert [clip.reason for clip in clips(path)] == ["missing-file", "unsupported-url", "unsupported-url"]


def test_another_table_and_an_empty_folder_are_sentences(tmp_path):
    with pytest.raises(BuildError, match="How to obtain it"):
        clips(tmp_path)
    with pytest.raises(BuildError, match="has no column url; it has path, caption"):
        clips(table(tmp_path / "t.csv", "path,caption\na.wav,A\n"))
