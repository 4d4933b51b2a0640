"""The row that flows through a build: changed as `replace` would, and the same after the disk."""

import json
from dataclasses import FrozenInstanceError, astuple, fields, replace

import pytest

from pipelines.clip import Clip, read_clips, to_json, write_clips
from pipelines.disk import BuildError

CLIP = Clip("s/1", "s", "https://host/1.ogg", captions=("a dog", "é"), tags=("dog",), duration=1.5, size=7)


def test_a_changed_clip_is_the_one_that_replace_makes_and_leaves_the_first_alone():
    other = CLIP.changed(language="en", captions=())
    assert other == replace(CLIP, language="en", captions=()) and hash(other) != hash(CLIP)
    assert CLIP.language == "" and CLIP.captions == ("a dog", "é")
    with pytest.raises(FrozenInstanceError):
        other.language = "de"


def test_a_changed_clip_keeps_its_fields_in_order():
    other = CLIP.changed(title="t", id="s/2").reject("filter", "too-long", "9 s")
    assert list(vars(other)) == [field.name for field in fields(Clip)]


def test_clips_come_back_from_the_disk_as_they_were(tmp_path):
    score = {"coverage": 1.0, "invention": 0.0, "logprob": -0.5}
    clips = [CLIP, replace(CLIP, fingerprint=b"\0\1", generated=("x",), generated_scores=(score,), end=3.0),
             CLIP.reject("exclude", "license", "none")]  # fmt: skip
    write_clips(tmp_path / "manifest/part-00000.parquet", clips)
    again = read_clips(tmp_path / "manifest/part-00000.parquet")
    assert again == clips and [*map(astuple, again)] == [*map(astuple, clips)]
    write_clips(tmp_path / "manifest/part-00001.parquet", [])
    assert read_clips(tmp_path / "manifest/part-00001.parquet") == []


def test_a_clip_with_a_field_that_no_part_has_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        write_clips(tmp_path / "part.parquet", [CLIP.changed(colour="red")])
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_version_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["s/1"]}), tmp_path / "part.parquet")
    with pytest.raises(BuildError, match="another version"):
        read_clips(tmp_path / "part.parquet")


def test_metadata_keeps_questions_and_loses_the_secrets_of_addresses_in_it():
    row = {"b": "who? me@home", "a": {"urls": ["https://u:p@host/x?token=1", "https://host/?q=2"]}, "n": 1.5}
    assert json.loads(to_json(row)) == row | {"a": {"urls": ["https://host/x", "https://host/?q=2"]}}
    assert to_json({"b": "é", "a": None}) == '{"a": null, "b": "é"}'
