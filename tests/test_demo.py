"""What the demo's generator promises: the same bytes, files that open, captions that the signal confirms."""

import csv
import re
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from pipelines.demo import BROKEN, expected_rejections, synthesise
from pipelines.sounds import BACKGROUND_DB, NUMBERS, Sound, over, rms, then

Row = dict[str, str]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    synthesise(folder, clips=120)
    return folder


def rows(folder: Path) -> list[Row]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def captions(row: Row) -> str:
    return " ".join(row[f"caption_{k}"] for k in (1, 2, 3)).lower()


def labelled(folder: Path, label: str) -> list[Row]:
    found = [row for row in rows(folder) if row["label"] == label]
    assert found
    return found


def decode(path: Path) -> tuple[np.ndarray, int, float]:
    """(channels, n_samples), sample rate, and the seconds that the container declares."""
    with av.open(str(path)) as file:
        planar = av.AudioResampler(format="fltp")
        frames = [part.to_ndarray() for frame in file.decode(audio=0) for part in planar.resample(frame)]
        return np.concatenate(frames, axis=1), file.streams.audio[0].rate, file.duration / 1e6


def mono(folder: Path, row: Row) -> tuple[np.ndarray, int]:
    wave, rate, _ = decode(folder / row["file_name"])
    return wave.mean(axis=0), rate


def spectrogram(wave: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Power (frames, bins) in frames of 40 ms, and the frequencies of the bins in Hz."""
    size = rate // 25
    frames = wave[: len(wave) // size * size].reshape(-1, size) * np.hanning(size)
    return np.abs(np.fft.rfft(frames)) ** 2, np.fft.rfftfreq(size, 1 / rate)


def onsets(wave: np.ndarray, rate: int) -> float:
    """Onsets per second: how often the peak of 20 ms rises from under 10 % to over 30 % of the loudest."""
    size = rate // 50
    peaks = np.abs(wave[: len(wave) // size * size]).reshape(-1, size).max(axis=1)
    count, quiet = 0, True
    for peak in peaks / peaks.max():
        count += int(quiet and peak > 0.3)
        quiet = peak < 0.1 or (quiet and peak <= 0.3)
    return count / (len(wave) / rate)


def test_the_same_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    synthesise(tmp_path, clips=40)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.name != "metadata.csv"]
    assert {path.suffix for path in files} == {".wav", ".flac", ".ogg", ".mp3", ".m4a", ".webm"}
    for path in files:
        assert path.read_bytes() == (corpus / path.relative_to(tmp_path)).read_bytes(), path
    assert rows(tmp_path)[:40] == rows(corpus)[:40]


def test_another_seed_gives_other_sounds(corpus: Path, tmp_path: Path) -> None:
    synthesise(tmp_path, clips=3, seed=1)
    assert rows(tmp_path)[:3] != rows(corpus)[:3]


def test_every_good_file_opens_at_the_declared_length_and_is_neither_silent_nor_clipped(corpus: Path) -> None:
    for row in rows(corpus)[:120]:
        wave, rate, seconds = decode(corpus / row["file_name"])
        assert abs(wave.shape[1] / rate - seconds) < 0.05, row
        assert 0.5 <= seconds < 25.1 and 16000 <= rate <= 96000, row
        assert -20 < 20 * np.log10(np.abs(wave).max()) < -0.5, row


def test_lengths_rates_and_channels_vary(corpus: Path) -> None:
    waves = [decode(corpus / row["file_name"]) for row in rows(corpus)[:120]]
    assert {len(wave) for wave, _, _ in waves} == {1, 2}
    assert len({rate for _, rate, _ in waves}) >= 5
    seconds = [seconds for _, _, seconds in waves]
    assert min(seconds) < 2 and max(seconds) > 15 and 2 < np.median(seconds) < 6


def test_every_good_clip_is_attributed_and_each_of_its_captions_is_a_different_sentence(corpus: Path) -> None:
    for row in rows(corpus)[:120]:
        texts = [row[f"caption_{k}"] for k in (1, 2, 3) if row[f"caption_{k}"]]
        assert row["license"] == "CC0-1.0" and row["author"] and row["title"]
        assert row["caption_1"] and len(set(texts)) == len(texts)
        assert all(text[0].isupper() and text.endswith(".") and "{" not in text for text in texts)


def test_captions_tell_clips_of_a_label_apart(corpus: Path) -> None:
    good = rows(corpus)[:120]
    assert len({row["caption_1"] for row in good}) > 0.85 * len(good)


def test_every_label_is_in_every_split(corpus: Path) -> None:
    good = rows(corpus)[:120]
    assert len({row["label"] for row in good}) == 20
    assert len({(row["label"], row["split"]) for row in good}) == 60


def test_the_seconds_in_a_caption_are_those_of_the_file(corpus: Path) -> None:
    for row in rows(corpus)[:120]:
        text = captions(row)
        if "about " in text:
            word = text.split("about ")[1].split()[0]
            said = NUMBERS.index(word) if word in NUMBERS else int(word)
            assert abs(said - decode(corpus / row["file_name"])[2]) < 0.6, row


def test_a_tone_has_the_pitch_of_its_caption(corpus: Path) -> None:
    bounds = {"low": (100, 260), "middle": (490, 910), "high": (1990, 4010)}
    for row in labelled(corpus, "tone"):
        wave, rate = mono(corpus, row)
        hertz = np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave)
        low, high = next(bounds[word] for word in bounds if word in captions(row).split())
        assert low < hertz < high, row


@pytest.mark.parametrize(("label", "sign"), [("rising sweep", 1), ("falling sweep", -1)])
def test_the_centroid_of_a_sweep_moves_as_its_label_says(corpus: Path, label: str, sign: int) -> None:
    for row in labelled(corpus, label):
        power, hertz = spectrogram(*mono(corpus, row))
        centroid = (power * hertz).sum(axis=1) / power.sum(axis=1).clip(1e-9)
        assert sign * np.median(np.diff(centroid)) > 0, row


@pytest.mark.parametrize("label", ["clicks", "drum beat", "alarm beeps", "bird-like chirps"])
def test_slow_and_fast_are_confirmed_by_the_onsets(corpus: Path, label: str) -> None:
    for row in labelled(corpus, label):
        slow = "slow" in captions(row)
        assert slow != any(word in captions(row) for word in ("fast", "quick")), row
        assert (onsets(*mono(corpus, row)) < 2.5) == slow, row


def test_bursts_are_as_many_as_the_caption_counts(corpus: Path) -> None:
    for row in labelled(corpus, "noise burst"):
        wave, rate = mono(corpus, row)
        said = NUMBERS.index(re.findall(r"(\w+) (?:short|long) (?:burst|blast)", captions(row))[0])
        loud = np.convolve(np.abs(wave), np.ones(rate // 20) / (rate // 20), "same")
        assert np.count_nonzero(np.diff((loud > 0.2 * loud.max()).astype(int)) == 1) == said, row


def test_hissing_lies_high_and_rumbling_low(corpus: Path) -> None:
    for row in labelled(corpus, "noise burst"):
        power, hertz = spectrogram(*mono(corpus, row))
        centroid = (power * hertz).sum() / power.sum()
        assert centroid > 2500 if "hissing" in captions(row) else centroid < 300, row


def test_rain_that_grows_louder_does_and_rain_that_dies_away_does(corpus: Path) -> None:
    for row in labelled(corpus, "rain"):
        wave, _ = mono(corpus, row)
        third = len(wave) // 3
        change = 20 * np.log10(rms(wave[-third:]) / rms(wave[:third]))
        trend = {"louder": change > 6, "dies": change < -6, "even": abs(change) < 4}
        assert next(true for word, true in trend.items() if word in captions(row)), row


def test_a_background_is_quieter_by_the_stated_level_and_still_there() -> None:
    time = np.arange(48000) / 48000
    front = Sound(np.sin(2 * np.pi * 1000 * time), ("a tone", "a note"))
    back = Sound(0.01 * np.sin(2 * np.pi * 200 * time), ("a hum", "a drone"))
    both = over(front, back)
    spectrum = np.abs(np.fft.rfft(both.wave))
    assert 20 * np.log10(spectrum[200] / spectrum[1000]) == pytest.approx(BACKGROUND_DB, abs=0.01)
    assert both.phrases == ("a tone over a hum", "a note with a drone in the background")


def test_what_follows_is_as_loud_as_what_goes_before() -> None:
    first = Sound(np.full(100, 0.5), ("a", "b"))
    both = then(first, Sound(np.full(200, 0.1), ("c", "d")))
    assert len(both.wave) == 300 and np.ptp(both.wave) == 0
    assert both.phrases == ("a, followed by c", "b, then d")


def test_every_broken_row_is_listed_and_expected_once(corpus: Path) -> None:
    listed = {row["file_name"]: row for row in rows(corpus)[120:]}
    assert set(listed) == {name for name, _ in BROKEN.values()}
    assert expected_rejections() == dict.fromkeys(BROKEN, 1)
    nameless = listed[BROKEN["no-caption"][0]]
    assert not captions(nameless).strip() and not nameless["label"] and not nameless["tags"]


def test_every_broken_file_is_broken_as_its_reason_says(corpus: Path) -> None:
    path = {reason: corpus / name for reason, (name, _) in BROKEN.items()}
    assert not path["missing-file"].exists()
    assert path["empty"].stat().st_size == 0
    assert path["truncated"].read_bytes()[40:44] == (960_000).to_bytes(4, "little")
    assert path["truncated"].stat().st_size < 100_000
    assert not decode(path["silent"])[0].any()
    assert soundfile.info(path["too-short"]).frames == 960
    assert soundfile.info(path["low-sample-rate"]).samplerate == 8000
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(path["not-audio"])
