"""Reading a dataset, here or remote: its rows, windows of its clips, and errors that name file, row and remedy."""

import io
from dataclasses import replace
from fractions import Fraction

import fsspec
import numpy as np
import pairs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from fsspec.implementations.memory import MemoryFileSystem

from clap.data import DataError, Tally, Undecodable, decode, open_split
from clap.embed import waveforms
from clap.loader import Loader
from clap.shards import identity, read_group, splits, weighted
from clap.text import train_tokenizer


def opened(name, split="train", folds=()):
    return open_split(name, split, folds, 48000)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    return pairs.write(tmp_path_factory.mktemp("twenty"), pairs.tones(20), shards=2)


def ramp(n):
    """(n,) int16 whose values tell their position."""
    return np.arange(n, dtype=np.int16)


def ramp_flac(n):
    buffer = io.BytesIO()
    soundfile.write(buffer, ramp(n), 48000, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def heard(data):
    """The centre 0.1 s of every clip, (clips, 4800)."""
    return np.stack([each[(len(each) - 4800) // 2 :][:4800] for each in waveforms(data, 48000, 48000, 4800, "centre")])


def test_rows_keep_the_order_of_shards_and_groups(twenty):
    data = opened(twenty)
    assert data.rows["id"].to_pylist() == [f"test/{i}" for i in range(20)]
    assert len(data.groups) == 4 and data.offset.tolist() == list(range(5)) * 4


def test_folds_choose_rows_and_their_own_audio(twenty):
    data = opened(twenty, folds=[2, 3])
    assert set(data.rows["fold"].to_pylist()) == {2, 3} and len(data) == 10
    whole, some = heard(opened(twenty)), heard(data)
    assert (some == whole[[i for i in range(20) if i % 4 in (1, 2)]]).all()


def test_all_splits_and_several_datasets_are_concatenated(twenty, tmp_path):
    other = pairs.write(tmp_path, pairs.tones(6), split="test")
    pairs.write(tmp_path, pairs.tones(3), split="validation")
    assert splits(other) == {"test", "validation"}
    assert len(opened(other, "all")) == 9
    both = open_split([other, other], "test", (), 48000)
    assert len(heard(both)) == len(both) == 12


def test_generated_sentences_are_read_by_name(tmp_path):
    data = opened(pairs.write(tmp_path, [pairs.row("a/0", ramp_flac(999), ["own"], generated=["made"])]))
    assert [data.captions(0, texts) for texts in ("captions", "generated", "both")] == [
        ["own"],
        ["made"],
        ["own", "made"],
    ]


def test_windows_are_central_without_a_generator_and_short_clips_come_as_they_are():
    assert (decode(ramp_flac(1001), 48000, 100, "") == ramp(1001)[450:550]).all()
    assert (decode(ramp_flac(300), 48000, 700, "") == ramp(300)).all()
    assert (decode(ramp_flac(300), 48000, 0, "") == ramp(300)).all()


def test_a_random_window_can_be_any_window():
    rng = np.random.default_rng(0)
    starts = {int(decode(ramp_flac(103), 48000, 100, "", rng)[0]) for _ in range(60)}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (pairs.flac(np.zeros(800), 44100), "44100 Hz, 1 channels, the model expects 48000 Hz mono: train"),
        (pairs.flac(np.zeros((800, 2))), "48000 Hz, 2 channels"),
        (b"not audio", "does not decode"),
        (None, "does not decode"),
        (pairs.flac(np.zeros(0)), "ends early or is empty|does not decode"),
    ],
)
def test_audio_that_cannot_be_used_is_told_before_the_first_step(tmp_path, audio, message):
    name = pairs.write(tmp_path, [pairs.row("bad/7", audio, ["a sound"])])
    with pytest.raises(DataError, match=message) as error:
        opened(name)
    assert "bad/7" in str(error.value) and "train-00000-of-00001" in str(error.value)


def test_a_truncated_clip_does_not_pass_for_a_short_one():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48000)
    with pytest.raises(DataError, match="here"):
        decode(pairs.flac(noise)[:40000], 48000, 48000, "here")


def claiming(frames):
    """A FLAC of 14,400 samples whose header claims so many (0: it does not know); RFC 9639, section 8.2."""
    flac = bytearray(pairs.flac(pairs.sound("buzz", 0, 0.3)))
    flac[21:26] = ((flac[21] & 0xF0) << 32 | frames).to_bytes(5)
    return bytes(flac)


@pytest.mark.parametrize("frames", [0, 2**30, 2**36 - 1])
@pytest.mark.parametrize(("wanted", "rng"), [(0, None), (12_000, None), (12_000, np.random.default_rng(0))])
def test_a_header_that_claims_more_than_there_is_costs_one_clip(frames, wanted, rng):
    assert len(decode(claiming(14_400), 48000, wanted, "here", rng)) == (wanted or 14_400)
    with pytest.raises(Undecodable, match=r"^here: audio"):
        decode(claiming(frames), 48000, wanted, "here", rng)


@pytest.mark.parametrize("n", [99, 100, 101, 200, 250])
def test_a_clip_read_in_blocks_is_the_clip(monkeypatch, n):
    monkeypatch.setattr("clap.data.BLOCK", 100)
    assert (decode(ramp_flac(n), 48000, 0, "") == ramp(n)).all()


def test_ids_cannot_steer_the_terminal(tmp_path, caplog):
    rows = [pairs.row("test/\x1b]0;pwned\x07\n", b"fLaC" + bytes(99), ["broken"]), *pairs.tones(8)]
    data = opened(pairs.write(tmp_path, rows))
    with pytest.raises(DataError) as error:
        heard(data)
    assert r"(test/\x1b]0;pwned\x07\n): audio" in str(error.value) and str(error.value).isprintable()
    assert data.where(0).isprintable() and "caf\xe9" in opened(pairs.write(tmp_path / "caf\xe9", rows)).where(0)


# ---- clips that fail


def failing(n, first=0):
    return [f"clip {i} does not decode" for i in range(first, first + n)]


def test_one_percent_of_the_clips_may_fail_wherever_they_lie():
    tally = Tally(2000)
    tally.add(20, failing(20))
    tally.add(1980, [])
    with pytest.raises(DataError, match="21 clips do not decode, more than 1% of 2000; the last: clip 20 does"):
        Tally(2000).add(2000, failing(21))


def test_a_few_clips_may_fail_however_small_the_dataset_and_a_clip_counts_once():
    tally = Tally(100)
    for _ in range(100):
        tally.add(100, failing(10))
    assert len(tally.told) == 10
    with pytest.raises(DataError, match="11 clips do not decode, more than 1% of 100"):
        Tally(100).add(50, failing(11))


def test_a_process_may_find_its_share_of_broken_clips_in_every_epoch():
    tally = Tally(2000)
    for epoch in range(5):
        tally.add(2000, failing(15, 15 * epoch))
    with pytest.raises(DataError, match="more than 1% of 10000"):
        tally.add(0, failing(26, 1000))


# ---- rows


def test_a_clip_without_caption_is_named(tmp_path):
    rows = pairs.tones(4)
    rows[2]["captions"] = []
    with pytest.raises(DataError, match=r"row 2 \(test/2\) has no caption"):
        opened(pairs.write(tmp_path, rows))


@pytest.mark.parametrize("text", [None, "", " \t\u00a0"])
@pytest.mark.parametrize("name", ["captions", "generated"])
def test_an_empty_text_is_named(tmp_path, name, text):
    rows = pairs.tones(20)
    rows[13][name] = ["good", text]
    with pytest.raises(DataError, match=rf"00001-of-00002.parquet, row 3 \(test/13\) has an empty text in {name}"):
        opened(pairs.write(tmp_path, rows, shards=2))


def test_a_row_may_be_without_generated_sentences(tmp_path):
    rows = pairs.tones(4)
    rows[1]["generated"], rows[2]["generated"] = None, ["made"]
    assert [*opened(pairs.write(tmp_path, rows)).all_captions("generated")][2] == "made"


def test_missing_columns_are_named(tmp_path):
    name = pairs.write(tmp_path, pairs.tones(2))
    path = tmp_path / "data/train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["captions"]), path)
    with pytest.raises(DataError, match="lacks captions: build it with build-dataset"):
        opened(name)


def test_only_id_audio_and_captions_are_needed(tmp_path):
    name = pairs.write(tmp_path, pairs.tones(2))
    path = tmp_path / "data/train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).select(["captions", "id", "audio"]), path)
    assert opened(name).rows["labels"].to_pylist() == [[], []]


def test_texts_have_offsets_of_64_bits_for_32_end_at_44_million_captions(twenty):
    texts = pa.large_list(pa.large_string())
    assert opened(twenty).rows.schema.types == [pa.large_string(), texts, texts, texts, pa.int32()]


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("many", [pa.list_, pa.large_list])
def test_texts_of_any_width_are_the_same_data(twenty, tmp_path, text, many):
    pairs.write(tmp_path, pairs.tones(20), shards=2)
    for path in (tmp_path / "data").iterdir():
        texts = {"id": text} | dict.fromkeys(("captions", "generated", "labels"), many(text))
        pq.write_table(pq.read_table(path).cast(pa.schema(pairs.SCHEMA | texts)), path, 5)
    wide, usual = opened(str(tmp_path)), opened(twenty)
    assert wide.rows.equals(usual.rows) and wide.fingerprint() == usual.fingerprint()
    narrow = wide.rows.cast(pa.schema({name: pairs.SCHEMA[name] for name in wide.rows.column_names}))
    assert replace(wide, rows=narrow).fingerprint() == wide.fingerprint()  # or no run would go on


def test_text_that_is_no_text_is_told(tmp_path):
    name = pairs.write(tmp_path, pairs.tones(2))
    path = tmp_path / "data/train-00000-of-00001.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(0, "id", pa.array([1, 2])), path)
    with pytest.raises(DataError, match="lacks id of the published type"):
        opened(name)


def test_a_missing_shard_is_noticed(twenty, tmp_path):
    name = pairs.write(tmp_path, pairs.tones(8), shards=2)
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"not whole or not of one build .train-00001-of-00002"):
        opened(name)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [("nowhere/at/all", "train", "no dataset at"), (None, "dev", "no split 'dev': it has train")],
)
def test_what_is_not_there_is_said(twenty, name, split, message):
    with pytest.raises(DataError, match=message):
        opened(name or twenty, split)


def test_a_hub_dataset_out_of_reach_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="nobody/nothing is no folder here, and the Hugging Face Hub did not"):
        opened("nobody/nothing")


def test_folds_that_match_nothing_are_an_error(twenty):
    with pytest.raises(DataError, match=r"no clip in split 'train' of .* is of folds \[9\]: check the folds"):
        opened(twenty, folds=[9])


def test_folds_that_leave_nothing_of_one_dataset_are_an_error_unless_that_is_meant(twenty, tmp_path):
    other = pairs.write(tmp_path, [row | {"fold": 0} for row in pairs.tones(6)])
    with pytest.raises(DataError, match=rf"of {other} is of folds \[1, 2\]: check the folds"):
        opened([twenty, other], folds=[1, 2])
    assert len(open_split([twenty, other], "train", [1, 2], 48000, every=False)) == 10
    with pytest.raises(DataError, match=rf"of {twenty}, {other} is"):
        open_split([twenty, other], "train", [9], 48000, every=False)


def test_a_split_without_clips_is_said(tmp_path):
    with pytest.raises(DataError, match=rf"no clip in split 'train' of {tmp_path}: choose another"):
        opened(pairs.write(tmp_path, []))


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    name = pairs.write(tmp_path, pairs.tones(2))
    (tmp_path / "data/train-00000-of-00001.parquet").write_bytes(b"half a file")
    with pytest.raises(DataError, match="no whole Parquet file"):
        opened(name)


# ---- what a shard is known by


def wav(seed, loudness=1.0):
    buffer = io.BytesIO()
    soundfile.write(buffer, loudness * pairs.sound("buzz", seed, 0.2), 48000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@pytest.mark.parametrize("changed", [0, 9])
def test_a_shard_is_known_by_its_sound_where_sizes_are_equal(tmp_path, changed):
    rows = [pairs.row(f"x/{i}", wav(i), ["a sound"]) for i in range(10)]
    shard, copy, other = (tmp_path / name / "data/train-00000-of-00001.parquet" for name in "abc")
    pairs.write(tmp_path / "a", rows, group=9)
    pairs.write(tmp_path / "b", rows, group=9)
    rows[changed]["audio"]["bytes"] = wav(changed, 0.01)
    pairs.write(tmp_path / "c", rows, group=9)
    assert identity(shard) == identity(copy) != identity(other)
    assert shard.stat().st_size == other.stat().st_size


# ---- weights, storage


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("out/dataset", ("out/dataset", 1)),
        ("out/dataset:2", ("out/dataset", 2)),
        ("user/name:.5", ("user/name", Fraction(1, 2))),
        ("hf://datasets/user/name", ("hf://datasets/user/name", 1)),
        ("s3://bucket/it:0.1", ("s3://bucket/it", Fraction(1, 10))),
        ("C:/data", ("C:/data", 1)),
    ],
)
def test_only_a_number_at_the_end_is_a_weight(name, expected):
    assert weighted(name) == expected


def test_a_folder_whose_name_ends_in_a_number_is_found(tmp_path):
    name = pairs.write(tmp_path / "take:2", pairs.tones(3))
    assert opened(name).weights == ((3, 1),) and opened(f"{name}:0.5").weights == ((3, Fraction(1, 2)),)


def test_a_weight_of_nothing_is_an_error(twenty):
    with pytest.raises(DataError, match="has the weight 0: leave the dataset out"):
        opened(f"{twenty}:0.0")


class Flaky(MemoryFileSystem):
    """Storage whose next readings fail."""

    protocol = "flaky"
    failing, read = 0, 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path, mode="rb", **named):
        if mode == "rb":
            Flaky.read += 1
            if Flaky.failing:
                Flaky.failing -= 1
                raise TimeoutError("no answer")
        return super()._open(path, mode, **named)


@pytest.fixture
def stored(twenty, monkeypatch):
    """The same dataset in storage."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("clap.shards.PAUSE", 0)
    monkeypatch.setattr(Flaky, "failing", 0)
    fsspec.filesystem("flaky").put(f"{twenty}/data", "/sounds/data", recursive=True)
    yield "flaky://sounds"
    fsspec.filesystem("flaky").rm("/sounds", recursive=True)


def test_a_dataset_in_storage_is_the_one_that_was_put_there(twenty, stored):
    here, there = opened(twenty, folds=[1, 2]), opened(stored, folds=[1, 2])
    assert splits(stored) == {"train"} and there.fingerprint() == here.fingerprint()
    assert (heard(there) == heard(here)).all()
    assert there.where(3).startswith("flaky://sounds/data/train-00000-of-00002.parquet, row 0 of row group 1")


def test_batches_that_are_streamed_are_those_of_the_folder(twenty, stored):
    tokenizer = train_tokenizer(opened(twenty).all_captions(), 300)
    config = replace(pairs.SMALL, epochs=2, pool=8)
    here, there = (list(Loader(opened(name), tokenizer, config).batches()) for name in (twenty, stored))
    assert len(here) == 10 and [batch.ids for batch in here] == [batch.ids for batch in there]
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(here, there, strict=True))


def test_storage_that_fails_for_a_moment_is_asked_again(stored):
    data = opened(stored)
    Flaky.failing = 3
    assert len(read_group(*data.groups[0])) == 5


def test_storage_that_stays_away_ends_with_advice(stored):
    data = opened(stored)
    Flaky.failing, Flaky.read = 100, 0
    with pytest.raises(DataError, match=r"cannot be read .TimeoutError: no answer.: when it can, start again"):
        read_group(*data.groups[0])
    assert Flaky.read == 4


def test_storage_without_the_dataset_is_said(stored):
    with pytest.raises(DataError, match="flaky://nothing has no split 'train': it has no shards"):
        opened("flaky://nothing")
    with pytest.raises(DataError, match="storage did not give it"):
        opened("nosuch://bucket/data")


def test_a_shard_whose_first_clip_is_broken_can_be_trained_on(tmp_path):
    rows = [pairs.row("bad/0", b"fLaC" + bytes(99), ["broken"]), *pairs.tones(8)]
    assert len(opened(pairs.write(tmp_path, rows))) == 9
