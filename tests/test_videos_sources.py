"""Corpora of sections of YouTube videos: audioset, audiocaps and vggsound, read in their published layouts."""

import csv
import json
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import write

from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.recording import recording_of
from pipelines.sources import Reading, audiocaps, audioset, vggsound
from pipelines.sources.audioset import segment
from pipelines.sources.corpus import Sounds

LABELS = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/m/07yv9,"Vehicle"
"""
HEAD = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=3
# YTID, start_seconds, end_seconds, positive_labels
"""
WATCH = "https://www.youtube.com/watch?v="


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def audioset_folder(root: Path) -> Path:
    put(root / "class_labels_indices.csv", LABELS)
    put(root / "balanced_train_segments.csv", HEAD + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/05zppz"\n')
    put(root / "unbalanced_train_segments.csv", HEAD + '-0RWZT-miFs, 420.500, 430.500, "/m/07yv9"\n')
    put(root / "eval_segments.csv", HEAD + '007P6bFgRCU, 10.000, 18.000, "/m/07yv9"\n')
    return root


def read(module, path: Path) -> list[Clip]:
    return list(module.clips(path, Reading()))


def test_audioset_names_have_commas_and_stay_whole(tmp_path):
    clip = read(audioset, audioset_folder(tmp_path))[0]
    assert clip.labels == clip.tags == ("Speech", "Male speech, man speaking")
    assert clip.captions == ()  # the stage caption makes its sentence


def test_audioset_clips_are_sections_with_the_split_of_their_list(tmp_path):
    clips = read(audioset, audioset_folder(tmp_path))
    assert [(clip.id, clip.split, clip.start, clip.end, clip.duration) for clip in clips] == [
        ("audioset/--PJHxphWEs#30-40", "train", 30, 40, 10),
        ("audioset/-0RWZT-miFs#420.5-430.5", "train", 420.5, 430.5, 10),
        ("audioset/007P6bFgRCU#10-18", "test", 10, 18, 8),
    ]
    assert clips[0].location == clips[0].url == WATCH + "--PJHxphWEs"
    assert clips[0].recording == "youtube:--PJHxphWEs#30-40"
    assert json.loads(clips[0].original)["positive_labels"] == "/m/09x0r,/m/05zppz"


def test_audioset_audio_that_is_there_is_not_cut_again(tmp_path):
    write(audioset_folder(tmp_path) / "audio/bal_train/--PJHxphWEs.flac")
    clip = read(audioset, tmp_path)[0]
    assert clip.location.endswith("/audio/bal_train/--PJHxphWEs.flac") and clip.start is None
    assert clip.recording == "youtube:--PJHxphWEs#30-40"


def test_audioset_audio_is_found_in_archives(tmp_path):
    sound = write(tmp_path / "one.flac")
    (audioset_folder(tmp_path / "in") / "data").mkdir()
    with tarfile.open(tmp_path / "in/data/bal_train00.tar", "w") as tar:
        tar.add(sound, "audio/bal_train/--PJHxphWEs.flac")
    assert read(audioset, tmp_path / "in")[0].location.endswith("bal_train00.tar#audio/bal_train/--PJHxphWEs.flac")


def test_audioset_one_list_is_enough_without_labels_if_their_names_are_not_beside_it(tmp_path):
    table = put(tmp_path / "eval_segments.csv", HEAD + '007P6bFgRCU, 10.000, 20.000, "/m/07yv9"\n')
    assert [(clip.labels, clip.split) for clip in read(audioset, table)] == [((), "test")]
    put(tmp_path / "class_labels_indices.csv", LABELS)
    assert read(audioset, table)[0].labels == ("Vehicle",)


def test_audioset_a_label_without_a_name_and_missing_files_are_sentences(tmp_path):
    with pytest.raises(BuildError, match=r"does not hold balanced_train.*How to obtain it"):
        read(audioset, tmp_path)
    table = put(tmp_path / "eval_segments.csv", HEAD + 'abc, 0.000, 10.000, "/m/unheard"\n')
    with pytest.raises(BuildError, match=r"does not hold class_labels_indices.csv"):
        read(audioset, tmp_path)
    put(tmp_path / "class_labels_indices.csv", LABELS)
    with pytest.raises(BuildError, match=f"{table} has the label /m/unheard, which class_labels"):
        read(audioset, tmp_path)
    put(tmp_path / "class_labels_indices.csv", "index,mid\n0,/m/09x0r\n")
    with pytest.raises(BuildError, match="display_name"):
        read(audioset, tmp_path)


def test_audioset_is_read_row_by_row(tmp_path):
    rows = "".join(f'video{number}, 0.000, 10.000, "/m/07yv9"\n' for number in range(9000))
    put(audioset_folder(tmp_path) / "balanced_train_segments.csv", HEAD + rows + "short row\n")
    clips = audioset.clips(tmp_path, Reading())
    assert next(clips).id == "audioset/video0#0-10"
    assert [clip.reason for clip in clips].count("missing-file") == 1  # the row without a video keeps its place


@pytest.mark.parametrize(
    ("video", "start", "end", "reason"),
    [("abc", "x", "", "bad-section"), ("abc", "", "", "bad-section"), ("abc", "20", "10", "bad-section"),
     ("", "1", "", "missing-file"), ("../../etc/x", "1", "", "missing-file"), ("abc", "1", "", "")],
)  # fmt: skip
def test_what_is_no_section_of_a_video_is_rejected_and_not_dropped(tmp_path, video, start, end, reason):
    assert segment("x", Sounds(tmp_path, "audio"), video, start, end, captions=("A dog",)).reason == reason


def audiocaps_table(path: Path, *rows: tuple[object, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([audiocaps.COLUMNS, *rows])
    return path


def test_audiocaps_rows_of_a_section_are_one_clip_with_all_captions_in_order(tmp_path):
    audiocaps_table(tmp_path / "train.csv", (1, "aaaaaaaaaaa", 30, "A dog, barking"))
    audiocaps_table(
        tmp_path / "val.csv",
        (2, "bbbbbbbbbbb", 0, "One"),
        (3, "ccccccccccc", 5, "Other"),
        (4, "bbbbbbbbbbb", 0, "Two"),
        (5, "bbbbbbbbbbb", 20, "Another part"),
    )
    clips = read(audiocaps, tmp_path)
    assert [(clip.id, clip.captions, clip.split) for clip in clips] == [
        ("audiocaps/aaaaaaaaaaa#30-40", ("A dog, barking",), "train"),
        ("audiocaps/bbbbbbbbbbb#0-10", ("One", "Two"), "validation"),
        ("audiocaps/ccccccccccc#5-15", ("Other",), "validation"),
        ("audiocaps/bbbbbbbbbbb#20-30", ("Another part",), "validation"),
    ]
    assert json.loads(clips[1].original)["audiocap_id"] == ["2", "4"]
    assert clips[1].recording == "youtube:bbbbbbbbbbb#0-10" and clips[1].license == "academic use only"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("val.csv", "validation"),
        ("audiocaps_test.csv", "test"),
        ("train_fixed.csv", "train"),
        ("dev.csv", "validation"),
    ],
)
def test_audiocaps_a_list_by_itself_has_the_split_of_its_name(tmp_path, name, split):
    assert read(audiocaps, audiocaps_table(tmp_path / name, (1, "aaaaaaaaaaa", 30, "A dog")))[0].split == split


def test_audiocaps_without_its_lists_columns_or_split_is_a_sentence(tmp_path):
    with pytest.raises(BuildError, match=r"does not hold train.csv.*How to obtain it"):
        read(audiocaps, tmp_path)
    with pytest.raises(BuildError, match="does not say in its name which split"):
        read(audiocaps, audiocaps_table(tmp_path / "t_all_x.csv", (1, "aaaaaaaaaaa", 30, "A dog")))
    with pytest.raises(BuildError, match="caption"):
        read(audiocaps, put(tmp_path / "val.csv", "audiocap_id,youtube_id,start_time\n1,aaaaaaaaaaa,30\n"))


def test_audiocaps_bytes_that_are_not_utf8_break_nothing(tmp_path):
    table = tmp_path / "val.csv"
    table.write_bytes(b"audiocap_id,youtube_id,start_time,caption\n1,aaaaaaaaaaa,30,Caf\xe9 noise\n2,bbbbbbbbbbb\n")
    first, second = read(audiocaps, table)
    assert first.captions == ("Caf\N{REPLACEMENT CHARACTER} noise",) and second.reason == "bad-section"


def test_audiocaps_as_published_has_495_validation_clips_of_five_captions(shared):
    clips = read(audiocaps, shared / "data/audiocaps")
    published = {
        name: list(csv.DictReader((shared / "data/audiocaps" / name).open(encoding="utf-8")))
        for name in ("train.csv", "val.csv")
    }
    assert Counter(clip.split for clip in clips) == {
        "train": len({(row["youtube_id"], row["start_time"]) for row in published["train.csv"]}),
        "validation": 495,
    }
    assert {len(clip.captions) for clip in clips if clip.split == "validation"} == {5}
    assert Counter(text for clip in clips for text in clip.captions) == Counter(
        row["caption"] for rows in published.values() for row in rows
    )
    assert len({clip.id for clip in clips}) == len(clips) and not any(clip.reason for clip in clips)


def test_vggsound_has_no_header_and_labels_with_commas(tmp_path):
    table = '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"bird chirping, tweeting",train\n'
    put(tmp_path / "vggsound.csv", table)
    write(tmp_path / "video/--0PQM4-hqg_000030.wav")
    first, second = read(vggsound, tmp_path)
    assert (first.id, first.labels, first.split) == ("vggsound/---g-f_I2yQ#1-11", ("people marching",), "test")
    assert (first.location, first.start, first.end) == (WATCH + "---g-f_I2yQ", 1, 11)
    assert (second.labels, second.tags, second.split) == (*[("bird chirping, tweeting",)] * 2, "train")
    assert second.location.endswith("--0PQM4-hqg_000030.wav") and second.start is None
    assert second.recording == "youtube:--0PQM4-hqg#30-40"
    assert [clip.id for clip in read(vggsound, tmp_path / "vggsound.csv")] == [first.id, second.id]


def test_the_section_of_a_video_that_is_there_goes_before_the_video(tmp_path):
    for name in ("abc.wav", "abc_000030.wav"):
        write(tmp_path / "audio" / name)
    sounds = Sounds(tmp_path, "audio")
    assert segment("x", sounds, "abc", "30").location.endswith("/abc_000030.wav")
    assert segment("x", sounds, "abc", "40").location.endswith("/abc.wav")


def test_the_section_of_a_recording_is_told_in_full():
    clip = Clip("x/1", "x", url=WATCH + "aaaaaaaaaaa", start=1234.5678, end=1244.5678)
    assert recording_of(clip) == "youtube:aaaaaaaaaaa#1234.5678-1244.5678"


def test_a_row_is_looked_up_in_any_number_of_folders_in_no_time(tmp_path):
    for number in range(41):
        (tmp_path / f"audio/{number}").mkdir(parents=True)
    write(tmp_path / "audio/7/b/abc.wav")
    sounds, begin = Sounds(tmp_path, "audio", "audio/*/"), time.monotonic()
    found = [segment("x", sounds, f"video{row}", "30") for row in range(500)]
    assert time.monotonic() - begin < 3 and all(clip.location.startswith(WATCH) for clip in found)
    assert sounds.find("none.wav", "b/abc.wav").endswith("/audio/7/b/abc.wav") and sounds.find("abc.wav") is None


def test_vggsound_without_its_list_is_a_sentence(tmp_path):
    with pytest.raises(BuildError, match=r"does not hold vggsound.csv.*How to obtain it"):
        read(vggsound, tmp_path)
