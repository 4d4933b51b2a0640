"""Duplicates by bytes, by samples and by sound: which are found, which one is kept, what is never confused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr

from pipelines.clip import Clip, write_clips
from pipelines.dedup import Dedup
from pipelines.disk import BuildError
from pipelines.evaluation import Row, prints_path, schema
from pipelines.fingerprint import PRINT_RATE, PRINT_SECONDS, fingerprint


def clip(id: str, **fields: object) -> Clip:
    return Clip(id=id, source="test", **{"captions": ("a sound",), **fields})  # type: ignore[arg-type]


def judge(folder: Path, clips: list[Clip], dedup: str = "exact") -> dict[str, tuple[str, str]]:
    """Reason and detail of the clips that a build in two parts rejects as duplicates."""
    parts = [folder / "part-0.parquet", folder / "part-1.parquet"]
    write_clips(parts[0], clips[: len(clips) // 2])
    write_clips(parts[1], clips[len(clips) // 2 :])
    stage = Dedup(dedup).gather(parts, folder / "dedup" / f"{dedup}.parquet")
    after = list(stage([each for each in clips if not each.reason]))
    return {each.id: (each.reason, each.detail) for each in after if each.reason}


def sounding(id: str, wave: np.ndarray, **fields: object) -> Clip:
    """A clip with the fingerprint of a waveform at PRINT_RATE."""
    return clip(id, duration=len(wave) / PRINT_RATE, fingerprint=fingerprint(wave.astype(np.float32)), **fields)


def noise(seed: int, seconds: float = 8.0) -> np.ndarray:
    """Noise whose level and colour wander, as those of wind do."""
    random = np.random.default_rng(seed)
    wave = random.standard_normal(round(seconds * PRINT_RATE))
    knots = np.arange(0, len(wave), PRINT_RATE // 4)
    level = np.interp(np.arange(len(wave)), knots, random.uniform(0.05, 0.3, len(knots)))
    return (wave * level).astype(np.float32)


@pytest.fixture(scope="module")
def waltz(shared) -> np.ndarray:
    """A real recording at PRINT_RATE: music, 20 s."""
    path = shared / "data/librosa/147793__setuniman__sweet-waltz-0i-22mi.ogg"
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True, frames=20 * 48_000)
    return soxr.resample(wave.mean(1), rate, PRINT_RATE)


def test_the_same_bytes_are_rejected_and_the_smallest_id_is_kept(tmp_path):
    found = judge(
        tmp_path, [clip("c", sha256="1"), clip("a", sha256="1"), clip("b", sha256="1"), clip("d", sha256="2")]
    )
    assert found == {"b": ("duplicate", "same bytes as a"), "c": ("duplicate", "same bytes as a")}


def test_the_same_samples_in_other_bytes_are_rejected(tmp_path):
    found = judge(tmp_path, [clip("a", sha256="1", pcm_md5="x"), clip("b", sha256="2", pcm_md5="x")])
    assert found == {"b": ("duplicate", "same samples as a")}


def test_a_clip_that_says_something_is_kept_before_a_mute_one_with_a_smaller_id(tmp_path):
    for said in ({"labels": ("dog",)}, {"tags": ("dog",)}, {"captions": ("a dog",)}):
        mute = clip("a", sha256="1", captions=())
        found = judge(tmp_path / next(iter(said)), [mute, clip("b", **{"sha256": "1", "captions": (), **said})])
        assert found == {"a": ("duplicate", "same bytes as b")}


def test_equal_through_a_third_clip_names_the_kept_one(tmp_path):
    clips = [clip("a", sha256="1", pcm_md5="x"), clip("b", sha256="2", pcm_md5="x"), clip("c", sha256="2")]
    assert judge(tmp_path, clips) == {"b": ("duplicate", "same samples as a"), "c": ("duplicate", "same samples as a")}


def test_unknown_hashes_equal_nothing(tmp_path):
    assert judge(tmp_path, [clip("a"), clip("b"), clip("c")]) == {}


def test_two_sections_of_one_file_are_not_duplicates(tmp_path):
    clips = [clip("a", sha256="1", start=0.0, end=10.0), clip("b", sha256="1", start=10.0, end=20.0)]
    clips.append(clip("c", sha256="1", start=10.0, end=20.0))
    assert judge(tmp_path, clips) == {"c": ("duplicate", "same bytes as b")}


def test_a_clip_that_was_rejected_before_takes_no_part(tmp_path):
    gone = clip("a", sha256="1").reject("filter", "silent")
    assert judge(tmp_path, [gone, clip("b", sha256="1")]) == {}


@pytest.mark.parametrize("dedup", ["none", "exact", "near"])
def test_no_part_and_no_clip_give_no_verdict(tmp_path, dedup):
    assert judge(tmp_path, [], dedup) == {}


def test_none_passes_everything(tmp_path):
    assert judge(tmp_path, [clip("a", sha256="1"), clip("b", sha256="1")], "none") == {}


def test_another_word_than_none_exact_or_near_is_refused():
    with pytest.raises(BuildError, match="choose one of none, exact, near"):
        Dedup("fuzzy")


def test_verdicts_that_were_written_are_not_made_again(tmp_path):
    judge(tmp_path, [clip("a", sha256="1"), clip("b", sha256="1")])
    written = (tmp_path / "dedup/exact.parquet").stat().st_mtime_ns
    stage = Dedup("exact").gather([tmp_path / "missing.parquet"], tmp_path / "dedup/exact.parquet")
    assert [each.reason for each in stage([clip("a"), clip("b")])] == ["", "duplicate"]
    assert (tmp_path / "dedup/exact.parquet").stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "dedup").iterdir()] == ["exact.parquet"]


def test_the_verdicts_do_not_depend_on_the_order_of_the_parts(tmp_path):
    wave = noise(0)
    clips = [sounding(f"{i}", cut, sha256="1") for i, cut in enumerate((wave, wave, wave[4_000:], noise(1)))]
    assert judge(tmp_path / "1", clips, "near") == judge(tmp_path / "2", clips[::-1], "near")


def altered(wave: np.ndarray, how: str) -> np.ndarray:
    """A copy of a waveform at PRINT_RATE."""
    match how:
        case "softer":
            return np.rint(wave * 2**13) / 2**15
        case "louder":
            return np.clip(wave * 2, -1, 1)
        case "noisy":
            return wave + 0.1 * wave.std() * np.random.default_rng(9).standard_normal(len(wave))
        case "resampled":
            return soxr.resample(soxr.resample(wave, PRINT_RATE, 11_025), 11_025, PRINT_RATE)
        case "start cut":
            return wave[round(0.37 * PRINT_RATE) :]
        case "end cut":
            return wave[: -2 * PRINT_RATE]
        case _:
            return altered(wave[round(1.111 * PRINT_RATE) : -PRINT_RATE], "noisy")


@pytest.mark.parametrize("how", ["softer", "louder", "noisy", "resampled", "start cut", "end cut", "cut and noisy"])
@pytest.mark.parametrize("seconds", [5, 15])
def test_a_copy_is_found(tmp_path, waltz, how, seconds):
    for name, wave in (("music", waltz[: seconds * PRINT_RATE]), ("noise", noise(3, seconds))):
        clips = [sounding("a", wave), sounding("b", noise(1)), sounding("c", altered(wave, how))]
        found = judge(tmp_path / name, clips, "near")
        assert list(found) == ["c"], name
        assert found["c"][0] == "near-duplicate" and found["c"][1].startswith("sounds like a (bit error rate 0.")


@pytest.mark.parametrize("codec", [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")], ids=lambda c: c[1])
def test_a_copy_in_another_format_is_found(tmp_path, shared, codec):
    waves = []
    for name in ("pibble.ogg", "5703-47212-0000.ogg"):
        wave, rate = soundfile.read(shared / "data/librosa" / name, dtype="float32", always_2d=True)
        wave = soxr.resample(wave[: 10 * rate].mean(1), rate, 48_000)
        soundfile.write(tmp_path / "copy", wave, 48_000, format=codec[0], subtype=codec[1], compression_level=0.9)
        waves += [wave, soundfile.read(tmp_path / "copy", dtype="float32")[0]]
    clips = [sounding(f"{i}", soxr.resample(wave, 48_000, PRINT_RATE)) for i, wave in enumerate(waves)]
    assert set(judge(tmp_path, clips, "near")) == {"1", "3"}


def test_sounds_of_esc10_are_not_confused_but_for_one_that_is_published_twice(tmp_path, shared):
    paths = sorted((shared / "data/esc10").glob("*/[12]-*.ogg"))
    waves = {path.name: soundfile.read(path, dtype="float32")[0] for path in paths}
    clips = [sounding(name, soxr.resample(wave, 44_100, PRINT_RATE)) for name, wave in waves.items()]
    found = judge(tmp_path, clips, "near")
    assert len(clips) > 150 and set(found) == {"2-30322-A.ogg"}  # FireBurning_v2.wav, correlated to 0.97 with
    assert found["2-30322-A.ogg"][1].startswith("sounds like 2-28314-A.ogg (")  # FireBurning.wav of the same author


def steady() -> dict[str, np.ndarray]:
    """Sounds that are alike for trivial reasons."""
    time, random = np.arange(6 * PRINT_RATE) / PRINT_RATE, np.random.default_rng(0)
    blip = np.where(time < 0.2, np.sin(2 * np.pi * 900 * time) * np.exp(-20 * time), 0)
    click = random.standard_normal(len(time)) * (time % 0.5 < 0.01)
    return {
        "silence": 0 * time,
        "faint": 1e-5 * random.standard_normal(len(time)),
        "tone": 0.5 * np.sin(2 * np.pi * 440 * time),
        "same tone, later": 0.5 * np.sin(2 * np.pi * 440 * time + 1),
        "chord": 0.2 * sum(np.sin(2 * np.pi * hertz * time) for hertz in (440, 550, 660)),
        "same chord, later": 0.2 * sum(np.sin(2 * np.pi * hertz * time + hertz) for hertz in (440, 550, 660)),
        "hum": 0.3 * np.sign(np.sin(2 * np.pi * 50 * time)),
        "blip": blip,
        "other blip": np.roll(blip, 9_000) + np.roll(blip, 30_000) * (time > 3),
        "clicks": 0.3 * click,
        "other clicks": 0.3 * random.standard_normal(len(time)) * (time % 0.5 < 0.01),
        "rain": 0.1 * random.standard_normal(len(time)),
        "other rain": 0.1 * random.standard_normal(len(time)),
    }


def test_silence_tones_and_noise_are_not_taken_for_each_other(tmp_path):
    assert judge(tmp_path, [sounding(name, wave) for name, wave in steady().items()], "near") == {}


def test_silence_and_a_pure_tone_say_nothing():
    waves = steady()
    for name in ("silence", "faint", "tone", "chord"):
        assert not any(fingerprint(waves[name].astype(np.float32))), name
    assert any(fingerprint(waves["rain"].astype(np.float32)))


def test_a_clip_like_a_rejected_one_is_kept_if_it_is_unlike_the_kept_one(tmp_path):
    wave = noise(5, 20)
    first, middle, last = (wave[start * PRINT_RATE : (start + 12) * PRINT_RATE] for start in (0, 4, 8))
    clips = [sounding("1", first), sounding("2", middle), sounding("3", last)]
    assert list(judge(tmp_path / "all", clips, "near")) == ["2"]
    assert list(judge(tmp_path / "two", clips[1:], "near")) == ["3"]


def test_an_excerpt_of_less_than_half_is_not_a_duplicate(tmp_path):
    wave = noise(6, 300)
    clips = [sounding("a", wave), sounding("b", wave[: 130 * PRINT_RATE]), sounding("c", noise(7, 20))]
    clips.append(sounding("d", noise(7, 20)[: 9 * PRINT_RATE]))
    assert len(clips[0].fingerprint) == len(clips[1].fingerprint) and judge(tmp_path, clips, "near") == {}


def test_every_copy_in_a_large_family_matches_the_kept_one(tmp_path):
    wave = noise(8)
    clips = [sounding(f"{40 - i:02d}", wave[i * 150 :]) for i in range(40)]
    clips.append(sounding("99", wave, labels=("wind",), captions=()))
    found = judge(tmp_path, clips, "near")
    assert set(found) == {each.id for each in clips} - {"01"}
    assert all(detail.startswith("sounds like 01 ") for _, detail in found.values())


def test_exact_duplicates_are_told_before_near_ones(tmp_path):
    wave = noise(2)
    clips = [sounding("a", wave, sha256="1"), sounding("b", wave, sha256="1"), sounding("c", wave * 0.5, sha256="2")]
    found = judge(tmp_path, clips, "near")
    assert found["b"] == ("duplicate", "same bytes as a") and found["c"][0] == "near-duplicate"


def test_a_duplicate_of_a_near_duplicate_names_the_kept_clip_too(tmp_path):
    wave = noise(2)
    clips = [sounding("a", wave), sounding("b", wave, sha256="1"), sounding("c", wave, sha256="1")]
    found = judge(tmp_path, clips, "near")
    assert found["c"] == ("duplicate", "same bytes as b, which sounds like a (bit error rate 0.00)")


def test_the_detail_of_an_overlap_begins_with_the_list_however_long_the_ids_are(tmp_path):
    lists = tmp_path / "evaluation.parquet"
    row = Row("esc50", "esc50/1", "audio", "file:///gone")
    pq.write_table(pa.Table.from_pylist([row._asdict()], schema=schema()), lists)
    wave = noise(3)
    write_clips(prints_path(lists), [sounding("esc50/1", wave)])
    ids = "a" * 600, "b" * 600
    write_clips(tmp_path / "part-0.parquet", [sounding(id, wave, sha256="1") for id in ids])
    stage = Dedup(lists=lists).gather([tmp_path / "part-0.parquet"], tmp_path / "dedup/verdicts.parquet")
    done = list(stage(clip(id) for id in ids))
    assert [each.reason for each in done] == ["evaluation-overlap"] * 2
    assert all(each.detail.startswith("sounds like esc50/1 (") for each in done)


def test_a_fingerprint_covers_two_minutes_in_words_of_four_bytes_and_repeats_itself():
    wave = noise(1, PRINT_SECONDS + 20)
    assert fingerprint(wave) == fingerprint(wave.copy()) == fingerprint(wave[: PRINT_SECONDS * PRINT_RATE])
    assert len(fingerprint(wave)) == 4 * 3_749
    for short in (0, 1, 600, 3_000):
        assert len(fingerprint(wave[:short])) % 4 == 0
