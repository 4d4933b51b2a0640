"""Collections of captions: wavcaps, wavtext5k, slakh and europarl_st, read in their published layouts."""

import json
import zipfile
from pathlib import Path

import pytest
from conftest import write

from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.manifest import prepare
from pipelines.sources import Reading, europarl_st, slakh, wavcaps, wavtext5k
from pipelines.sources.wavcaps import read_blacklist

FREESOUND = {
    "id": "180913", "file_name": "UK Mello.wav", "href": "/people/Tempouser/sounds/180913/", "audio": "wav_path",
    "tags": ["ringtone", "basic"], "description": "Basic ringtone, in mello tone.", "author": "Tempouser",
    "duration": 3.2, "caption": "A traditional ringtone is playing.",
    "download_link": "https://freesound.org/people/Tempouser/sounds/180913/download/180913__tempouser__uk-mello.wav",
}  # fmt: skip
BBC = {
    "description": "Rip saw, carpenters' workshop.", "category": "['Machines', \"Carpenter's\"]", "id": "07066104",
    "caption": "Someone is using a rip saw in a carpenter's workshop.", "duration": 138.36, "audio": "wav_path",
    "download_link": "https://sound-effects-media.bbcrewind.co.uk/zip/07066104.wav.zip",
}  # fmt: skip
SOUNDBIBLE = {
    "title": "Airplane Landing", "description": "Large airplane landing.", "author": "Daniel Simion", "id": "180913",
    "href": "2219-Airplane-Landing.html", "caption": "An airplane is landing.", "duration": 14.1, "audio": "wav_path",
    "download_link": "http://soundbible.com/grab.php?id=2219&type=wav",
}  # fmt: skip
AUDIOSET = {"id": "Yb0RFKhbpFJA.wav", "caption": "Wind and a man are heard.", "audio": "wav_path", "duration": 10.0}


def read(module, path: Path) -> list[Clip]:
    return list(module.clips(path, Reading()))


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def wavcaps_list(root: Path, name: str, *items: dict) -> Path:
    return put(root / "json_files" / name, {"num_captions_per_audio": 1, "data": list(items)})


def wavcaps_folder(root: Path) -> Path:
    wavcaps_list(root, "FreeSound/fsd_final.json", FREESOUND)
    wavcaps_list(root, "FreeSound/fsd_final_2s.json", FREESOUND)
    wavcaps_list(root, "BBC_Sound_Effects/bbc_final.json", BBC)
    wavcaps_list(root, "SoundBible/sb_final.json", SOUNDBIBLE)
    wavcaps_list(root, "AudioSet_SL/as_final.json", AUDIOSET)
    return root


def test_wavcaps_subsets_keep_apart_and_no_list_counts_twice(tmp_path):
    clips = read(wavcaps, wavcaps_folder(tmp_path))
    assert [clip.id for clip in clips] == [
        "wavcaps/FreeSound/180913",
        "wavcaps/BBC_Sound_Effects/07066104",
        "wavcaps/SoundBible/180913",
        "wavcaps/AudioSet_SL/Yb0RFKhbpFJA",
    ]
    assert [clip.captions for clip in clips] == [(item["caption"],) for item in (FREESOUND, BBC, SOUNDBIBLE, AUDIOSET)]
    assert [clip.url for clip in clips] == [
        "https://freesound.org/people/Tempouser/sounds/180913/",
        BBC["download_link"],
        "https://soundbible.com/2219-Airplane-Landing.html",
        "https://www.youtube.com/watch?v=b0RFKhbpFJA",
    ]
    assert [clip.tags for clip in clips] == [("ringtone", "basic"), ("Machines", "Carpenter's"), (), ()]
    assert (clips[0].title, clips[0].author, clips[2].title) == ("UK Mello.wav", "Tempouser", "Airplane Landing")


def test_wavcaps_clips_tell_their_recordings_and_a_video_of_unknown_start_has_no_section(tmp_path):
    clips = read(wavcaps, wavcaps_folder(tmp_path))
    assert [clip.recording for clip in clips] == ["freesound:180913", "", "", "youtube:b0RFKhbpFJA"]
    assert {clip.license for clip in clips} == {"academic use only"}  # not the CC BY of its page's front matter


def test_wavcaps_equal_ids_of_two_subsets_are_different_sounds(tmp_path):
    write(wavcaps_folder(tmp_path) / "audio/SoundBible/180913.flac")
    freesound, _, soundbible, _ = read(wavcaps, tmp_path)
    assert soundbible.location.endswith("/audio/SoundBible/180913.flac")
    assert freesound.location.endswith("/audio/FreeSound/180913.flac")  # where it should be


def test_wavcaps_audio_is_found_in_its_zips_and_where_these_unpack(tmp_path):
    sound = write(tmp_path / "one.flac")
    root = wavcaps_folder(tmp_path / "in")
    inside = "mnt/fast/nobackup/scratch4weeks/xm00178/WavCaps/data/waveforms"
    (root / "Zip_files/AudioSet_SL").mkdir(parents=True)
    with zipfile.ZipFile(root / "Zip_files/AudioSet_SL/AudioSet_SL.zip", "w") as archive:
        archive.write(sound, f"{inside}/AudioSet_SL_flac/Yb0RFKhbpFJA.flac")
    write(root / inside / "FreeSound_flac/180913.flac")
    clips = read(wavcaps, root)
    assert clips[0].location.endswith(f"{inside}/FreeSound_flac/180913.flac")
    assert clips[3].location.endswith(f"AudioSet_SL.zip#{inside}/AudioSet_SL_flac/Yb0RFKhbpFJA.flac")


def test_wavcaps_a_list_by_itself_tells_its_subset_and_broken_items_keep_their_place(tmp_path):
    items = [FREESOUND | {"duration": 0}, {"id": "../x", "caption": "A dog"}, {"caption": "A cat"}]
    table = wavcaps_list(tmp_path, "fsd_final.json", *items, {"id": 7, "duration": float("nan")})
    clips = list(prepare(read(wavcaps, table)))
    assert [(clip.id, clip.reason) for clip in clips] == [
        ("wavcaps/FreeSound/180913", ""),
        ("wavcaps/FreeSound/row-2", "missing-file"),
        ("wavcaps/FreeSound/row-3", "missing-file"),
        ("wavcaps/FreeSound/7", ""),
    ]
    assert [clip.duration for clip in clips] == [0, None, None, None]  # 0 s: the filter rejects it later
    assert clips[3].captions == () and "NaN" not in clips[3].original


def test_wavcaps_what_is_no_list_of_it_is_a_sentence(tmp_path):
    with pytest.raises(BuildError, match=r"does not hold json_files.*How to obtain it"):
        read(wavcaps, tmp_path)
    with pytest.raises(BuildError, match="is not a list of WavCaps"):
        read(wavcaps, put(tmp_path / "sb_final.json", {"data": ["x"]}))
    with pytest.raises(BuildError, match="does not say in its name which subset"):
        read(wavcaps, put(tmp_path / "captions.json", {"data": []}))
    with pytest.raises(BuildError, match="cannot read"):
        read(wavcaps, put(tmp_path / "as_final.json", "{"))


def test_a_blacklist_gives_recordings_and_passes_over_clips_without_one(tmp_path):
    lists = {"AudioSet": ["YvfY_TJq7n_U.wav", "Y-BdPW1c_3_8.wav"], "FreeSound": ["156", "Not found", "201"]}
    assert read_blacklist(put(tmp_path / "blacklist_exclude_test_ac.json", lists)) == [
        "youtube:vfY_TJq7n_U",
        "youtube:-BdPW1c_3_8",
        "freesound:156",
        "freesound:201",
    ]


@pytest.mark.parametrize("content", [[], {"BBC": []}, {"AudioSet": ["vfY_TJq7n_U"]}, {"FreeSound": ["dog.wav"]}])
def test_a_blacklist_that_is_not_understood_lets_nothing_through(tmp_path, content):
    with pytest.raises(BuildError, match="want"):
        read_blacklist(put(tmp_path / "b.json", content))


WAVTEXT5K = """view_link,download_link,title,description,fname,tags
https://bigsoundbank.com/detail-0100-forest.html,https://bigsoundbank.com/UPLOAD/wav/0100.wav,Forest,"Birds, fly.",\
0100.wav,
https://bigsoundbank.com/detail-0595-wind.html,https://bigsoundbank.com/UPLOAD/wav/0595.wav,Wind,,0595.wav,
https://soundbible.com/294-Coyote-Call.html,https://soundbible.com/grab.php?id=294&type=wav,Coyote Call, Coyote call \
from Missouri,coyote call_1834.wav,"['wild', ""coyote's howl"", 'dog']"
"""


def test_wavtext5k_a_sound_without_a_description_has_its_title_as_caption(tmp_path):
    put(tmp_path / "WavText5K.csv", WAVTEXT5K)
    write(tmp_path / "audio/coyote call_1834.wav")
    clips = list(prepare(read(wavtext5k, tmp_path)))
    assert [clip.captions for clip in clips] == [("Birds, fly.",), ("Wind.",), ("Coyote call from Missouri",)]
    assert [clip.tags for clip in clips] == [(), (), ("wild", "coyote's howl", "dog")]
    assert [clip.id for clip in clips] == [
        f"wavtext5k/{name}" for name in ("0100.wav", "0595.wav", "coyote call_1834.wav")
    ]
    assert clips[0].location == "https://bigsoundbank.com/UPLOAD/wav/0100.wav"
    assert clips[2].location.endswith("/audio/coyote call_1834.wav")
    assert (clips[0].url, clips[0].title) == ("https://bigsoundbank.com/detail-0100-forest.html", "Forest")


def test_wavtext5k_names_and_links_lead_to_no_file_elsewhere(tmp_path):
    write(tmp_path / "secret.wav")
    (tmp_path / "in/audio").mkdir(parents=True)
    row = f"https://e.org,file://{tmp_path}/secret.wav,Rain,,../../secret.wav,"
    (clip,) = read(wavtext5k, put(tmp_path / "in/WavText5K.csv", WAVTEXT5K.splitlines()[0] + f"\n{row}\n"))
    assert clip.location.endswith("/in/audio/secret.wav")


def test_wavtext5k_without_its_table_or_columns_is_a_sentence(tmp_path):
    with pytest.raises(BuildError, match=r"does not hold WavText5K.csv.*How to obtain it"):
        read(wavtext5k, tmp_path)
    with pytest.raises(BuildError, match="description"):
        read(wavtext5k, put(tmp_path / "WavText5K.csv", "view_link,title\nhttps://e.org,Rain\n"))


TRACK = """UUID: 1a81ae092884234f3264e2f45927f00a
audio_dir: stems
stems:
  S00:
    audio_rendered: true
    inst_class: Piano
    integrated_loudness: -21.7
    is_drum: false
    midi_program_name: Electric Piano 1
    midi_saved: true
    plugin_name: scarbee_clavinet_full.nkm
    program_num: 4
  S01:
    audio_rendered: true
    inst_class: Strings (continued)
    is_drum: false
    midi_program_name: String Ensemble 1
    plugin_name: None v1.2
  S02:
    audio_rendered: false
    inst_class: Sound Effects
target_peak: -1.0
"""


def test_slakh_stems_that_were_rendered_are_clips_with_a_sentence(tmp_path):
    put(tmp_path / "train/Track00001/metadata.yaml", TRACK)
    write(tmp_path / "train/Track00001/stems/S00.flac")
    clips = read(slakh, tmp_path)
    assert [(clip.id, clip.split) for clip in clips] == [
        ("slakh/Track00001/S00", "train"),
        ("slakh/Track00001/S01", "train"),
    ]
    assert [clip.captions for clip in clips] == [
        ("Playing piano music synthesized with the scarbee clavinet full plugin.",),
        ("Playing string music synthesized with the none v1.2 plugin.",),
    ]
    assert clips[0].tags == ("piano", "electric piano 1") and clips[0].license == "CC-BY-4.0"
    assert clips[0].location.endswith("/train/Track00001/stems/S00.flac")
    assert json.loads(clips[0].original)["UUID"].startswith("1a81")


@pytest.mark.parametrize(
    ("instrument", "plugin", "caption"),
    [("drums", "studio_kit.nkm", "Playing drum music synthesized with the studio kit plugin."),
     ("guitar", "", "Playing guitar music.")],
)  # fmt: skip
def test_slakh_captions_are_english(instrument, plugin, caption):
    assert slakh.caption(instrument, plugin) == caption


def test_slakh_splits_are_folders_and_omitted_tracks_keep_their_place(tmp_path):
    for split in ("test", "validation", "omitted"):
        put(tmp_path / "slakh2100_flac_redux" / split / f"Track0000{len(split)}/metadata.yaml", TRACK)
    clips = read(slakh, tmp_path)
    assert [(clip.split, clip.reason) for clip in clips[::2]] == [
        ("", "near-duplicate"),
        ("test", ""),
        ("validation", ""),
    ]


@pytest.mark.parametrize("content", ["stems: [", "UUID: x\n", "- a\n", "\x00"])
def test_slakh_metadata_that_is_none_is_a_sentence(tmp_path, content):
    with pytest.raises(BuildError, match=r"metadata\.yaml"):
        read(slakh, put(tmp_path / "Track00001/metadata.yaml", content))


def europarl(root: Path, place: str, segments: str, transcripts: str) -> None:
    put(root / place / "segments.lst", segments)
    put(root / place / f"segments.{place.split('/')[0]}", transcripts)


def test_europarl_a_sentence_under_several_languages_is_one_clip_and_that_of_the_test_set(tmp_path):
    speech = "en.20080924.31.3-243"
    europarl(tmp_path, "en/de/train", f"{speech} 0.00 4.50\n{speech} 4.50 6.25\n", "Madam President.\nThank you.\n")
    europarl(tmp_path, "en/fr/test", f"{speech} 4.50 6.25\n", "Thank you.\n")
    clips = read(europarl_st, tmp_path)
    assert [(clip.id, clip.split) for clip in clips] == [
        (f"europarl_st/{speech}#4.5-6.25", "test"),
        (f"europarl_st/{speech}#0-4.5", "train"),
    ]
    assert clips[1].captions == ('A person is saying: "Madam President."',)
    assert (clips[0].start, clips[0].end, clips[0].duration) == (4.5, 6.25, 1.75)
    assert clips[0].location.endswith(f"/en/audios/{speech}.m4a") and clips[0].license == "CC-BY-NC-4.0"


def test_europarl_captions_are_in_the_language_that_is_spoken(tmp_path):
    europarl(tmp_path / "v1.1", "es/en/dev", "es.1 0 2\n", "Señor Presidente.\n")
    europarl(tmp_path / "v1.1", "ro/en/dev", "ro.1 0 2\n", "Domnule Președinte.\n")
    assert [(clip.language, clip.captions[0], clip.split) for clip in read(europarl_st, tmp_path)] == [
        ("es", 'Una persona está diciendo: "Señor Presidente."', "validation"),
        ("ro", 'O persoană spune: "Domnule Președinte."', "validation"),
    ]


def test_europarl_odd_lines_keep_their_place_and_the_lines_after_them_theirs(tmp_path):
    europarl(tmp_path, "en/de/train", "en.1 0 2\nen.2 x 2\nen.3\nen.4 0 2\n", "One\x85\rmore.\nTwo.\n\nFour\u2028x.\n")
    clips = read(europarl_st, tmp_path / "en/de/train/segments.lst")
    assert [clip.reason for clip in clips] == ["", "bad-section", "bad-section", ""]
    assert "Four" in clips[3].captions[0] and clips[2].captions == ()


def test_europarl_lists_that_do_not_fit_or_are_not_there_are_sentences(tmp_path):
    with pytest.raises(BuildError, match=r"does not hold <language>.*How to obtain it"):
        read(europarl_st, tmp_path)
    europarl(tmp_path, "en/de/train", "en.1 0 2\nen.2 0 2\n", "One.\n")
    with pytest.raises(BuildError, match=r"segments.lst has 2 lines and segments.en 1"):
        read(europarl_st, tmp_path)
    (tmp_path / "en/de/train/segments.en").unlink()
    with pytest.raises(BuildError, match=r"cannot read .*segments.lst"):
        read(europarl_st, tmp_path)
