"""Sources: what a folder or a table says about its clips."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, cli, write

from pipelines.build import plan
from pipelines.clip import Clip, read_clips
from pipelines.disk import BuildError
from pipelines.exclude import Exclude, read_ids
from pipelines.manifest import manifest, prepare
from pipelines.run import part_path
from pipelines.sources import SOURCES, Reading, source
from pipelines.sources.table import several


def clips(name: str, path: Path, **reading: object) -> list[Clip]:
    return list(prepare(source(name).clips(path, Reading(**reading))))


def table(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_caption_of_a_file_is_its_name(tmp_path):
    write(tmp_path / "in/deep/A_dog-barks  loudly.wav")
    (clip,) = clips("folder", tmp_path / "in")
    assert (clip.id, clip.captions, clip.labels) == (
        "folder/deep/A_dog-barks  loudly.wav",
        ("A dog barks loudly",),
        (),
    )


def test_the_folder_is_the_label_on_request_and_speaks_for_a_name_that_says_nothing(tmp_path):
    write(tmp_path / "in/dog_bark/1-100032-A.wav")
    assert [clip.captions for clip in clips("folder", tmp_path / "in")] == [()]
    (clip,) = clips("folder", tmp_path / "in", labels_from_folders=True)
    assert (clip.captions, clip.labels) == ((), ("dog bark",))


def test_any_audio_extension_in_any_case_counts_and_nothing_else(tmp_path):
    for name in ("a.WAV", "b.Mp3", "c.txt", "d.webm", "e"):
        (tmp_path / name).write_bytes(b"x")
    assert [clip.id for clip in clips("folder", tmp_path)] == ["folder/a.WAV", "folder/b.Mp3", "folder/d.webm"]


def test_linked_folders_are_entered_once_and_circles_end(tmp_path):
    write(tmp_path / "elsewhere/dog.wav")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    assert [clip.id for clip in clips("folder", tmp_path / "in")] == ["folder/link/dog.wav"]


def test_equal_names_in_different_folders_are_different_clips(tmp_path):
    write(tmp_path / "a/dog.wav")
    write(tmp_path / "b/dog.wav")
    assert [clip.id for clip in clips("folder", tmp_path)] == ["folder/a/dog.wav", "folder/b/dog.wav"]


def test_metadata_csv_is_honoured_and_every_file_and_row_stays_accounted_for(tmp_path):
    write(tmp_path / "a.wav")
    write(tmp_path / "unlisted.wav")
    table(tmp_path, "file_name,text,split\na.wav,A dog,valid\nabsent.wav,A cat,test\n,A bird,test\n", "metadata.csv")
    found = {clip.id: clip for clip in clips("folder", tmp_path)}
    assert found["folder/a.wav"].captions == ("A dog",) and found["folder/a.wav"].split == "validation"
    assert found["folder/unlisted.wav"].captions == ()
    assert found["folder/absent.wav"].captions == ("A cat",)
    assert found["folder/row-3"].reason == "missing-file"


def test_metadata_jsonl_in_a_sub_folder_is_honoured(tmp_path):
    write(tmp_path / "sub/a.wav")
    table(tmp_path / "sub", json.dumps({"file_name": "a.wav", "captions": ["A dog", "A bark"]}), "metadata.jsonl")
    assert [clip.captions for clip in clips("folder", tmp_path)] == [("A dog", "A bark")]


def test_columns_are_recognised_by_their_usual_names(tmp_path):
    path = table(
        tmp_path,
        "Path,caption_2,caption_1,keywords,label,fold,subset,licence,username,title,source_url\n"
        'x.wav,Second,First,"dog, bark",dog,3,eval,CC0,ann,Rex,http://e.org/1\n',
    )
    (clip,) = clips("csv", path)
    assert clip.captions == ("First", "Second") and clip.tags == ("dog", "bark") and clip.labels == ("dog",)
    assert (clip.fold, clip.split, clip.license, clip.author) == (3, "test", "CC0-1.0", "ann")
    assert (clip.title, clip.url, clip.id) == ("Rex", "http://e.org/1", "csv/x.wav")
    assert json.loads(clip.original)["keywords"] == "dog, bark"


def test_other_columns_can_be_named(tmp_path):
    path = table(tmp_path, "where,says\nx.wav,A dog\n")
    (clip,) = clips("csv", path, column=("location=where", "captions=says"))
    assert clip.captions == ("A dog",)


def test_a_column_named_twice_is_refused(tmp_path):
    path = table(tmp_path, "path,a,b\nx.wav,A dog,CC0\n")
    with pytest.raises(BuildError, match="each FIELD once"):
        clips("csv", path, column=("captions=a", "captions=b"))


def test_a_list_as_python_prints_it_is_several_texts():
    assert several("['A dog barks', \"It's raining\"]") == ["A dog barks", "It's raining"]
    assert several("[music] a man") == ["[music] a man"] and several("['a\nb']") == ["['a\nb']"]
    assert several("['dog' 'cat']") == ["['dog' 'cat']"]


def test_what_programs_write_for_nothing_is_nothing(tmp_path):
    path = table(tmp_path, "path,caption,labels,license,author,split,start,end\nx.wav,nan,None,nan,NaN,null,nan,nan\n")
    (clip,) = clips("csv", path)
    assert (clip.start, clip.end) == (None, None)
    assert (clip.captions, clip.labels, clip.license, clip.author, clip.split) == ((), (), "", "", "train")


def test_a_quote_that_swallows_one_row_is_an_error(tmp_path):
    path = table(tmp_path, 'path,caption\na.wav,"a dog\nb.wav,"a cat"\nc.wav,"rain"\n')
    with pytest.raises(BuildError, match="quote"):
        clips("csv", path)
    path = table(tmp_path, 'path,caption\na.wav,"A 12"" record\nplays at 1,000 rpm"\n')
    assert clips("csv", path)[0].captions == ('A 12" record plays at 1,000 rpm',)


def test_errors_of_tables_name_the_line_and_what_a_table_is_split_at(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"path": "a.wav"}\n{"path": "b')
    with pytest.raises(BuildError, match="line 2"):
        clips("csv", tmp_path / "t.jsonl")
    with pytest.raises(BuildError, match=r"among: path;caption.*split at commas"):
        clips("csv", table(tmp_path, "path;caption\na.wav;A dog\n"))


def test_rows_of_the_same_clip_are_one_clip_with_all_captions(tmp_path):
    path = table(tmp_path, "path,caption\na.wav,One\nb.wav,Other\na.wav,Two\na.wav,One\n")
    assert [clip.captions for clip in clips("csv", path)] == [("One", "Two"), ("Other",)]
    assert len(json.loads(clips("csv", path)[0].original)) == 3


def test_an_id_given_to_two_files_loses_neither(tmp_path):
    path = table(tmp_path, "id,path,caption\n7,a.wav,One\n7,b.wav,Two\n")
    assert [clip.id for clip in clips("csv", path)] == ["csv/7", "csv/7#2"]


def test_a_file_in_two_tables_is_one_clip_with_all_captions(tmp_path):
    write(tmp_path / "sub/a.wav")
    table(tmp_path, "file_name,text,id\nsub/a.wav,From above,7\nsub/a.wav,Again,8\n", "metadata.csv")
    table(tmp_path / "sub", "file_name,text\na.wav,From beside\n", "metadata.csv")
    assert [clip.captions for clip in clips("folder", tmp_path)] == [("From above", "Again", "From beside")]


def test_ids_that_look_like_ours_stay_unique(tmp_path):
    path = table(tmp_path, "id,path,caption\na,1.wav,x\na,2.wav,x\na#2,3.wav,x\n")
    assert [clip.id for clip in clips("csv", path)] == ["csv/a", "csv/a#2", "csv/a#2#2"]


def test_many_clips_of_one_id_are_numbered_in_no_time():
    begin = time.monotonic()
    last = [clip.id for clip in prepare(Clip("x/1", "x") for _ in range(12_000))][-1]
    assert last == "x/1#12000" and time.monotonic() - begin < 5


def test_parts_of_a_manifest_that_was_killed_are_made_anew(tmp_path):
    manifest(tmp_path, [Clip("x/old", "x")], 1, None)
    (tmp_path / "manifest.json").unlink()
    manifest(tmp_path, [Clip("x/new", "x")], 1, None)
    assert [clip.id for clip in read_clips(part_path(tmp_path, "manifest", 0))] == ["x/new"]


def test_an_id_list_with_a_byte_order_mark_and_clips_of_the_same_id_are_matched(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf7\n# not one\n")
    rows = [Clip("csv/7", "csv"), Clip("csv/7#2", "csv"), Clip("csv/8", "csv")]
    out = Exclude(exclude_ids=read_ids(tmp_path / "ids.txt"))(rows)
    assert [clip.reason for clip in out] == ["evaluation-overlap", "evaluation-overlap", ""]


def test_a_number_stays_as_published_whatever_other_rows_hold(tmp_path):
    path = table(tmp_path, '{"path": "a.wav", "id": 7, "title": 1984}\n{"path": "b.wav"}\n', "t.jsonl")
    first, second = clips("csv", path)
    assert (first.id, first.title, second.id) == ("csv/7", "1984", "csv/b.wav")


def test_a_quote_that_swallows_rows_is_an_error(tmp_path):
    path = table(tmp_path, 'path\tcaption\na.wav\t"Dog\nb.wav\tcat\nc.wav\tcow"\n', "t.tsv")
    with pytest.raises(BuildError, match="a quote is not closed"):
        clips("csv", path)


def test_prose_of_several_lines_with_commas_is_no_open_quote(tmp_path):
    text = 'path,caption\na.wav,"Rain, then\nwind, hail\nthunder, and 1,000 birds\nthe end"\nb.wav,cat\n'
    assert [clip.captions for clip in clips("csv", table(tmp_path, text))] == [
        ("Rain, then wind, hail thunder, and 1,000 birds the end",), ("cat",),
    ]  # fmt: skip


def test_an_audio_column_gives_its_path_and_its_bytes_stay_out_of_the_metadata(tmp_path):
    audio = {"bytes": b"fLaC", "path": "a.flac"}
    pd.DataFrame({"audio": [audio], "text": ["A dog"]}).to_parquet(tmp_path / "t.parquet")
    (clip,) = clips("csv", tmp_path / "t.parquet")
    assert clip.id == "csv/a.flac" and "fLaC" not in clip.original


def test_a_column_url_is_where_the_bytes_are_and_whom_to_credit(tmp_path):
    (clip,) = clips("csv", table(tmp_path, "url,caption\nhttps://e.org/a.wav,A dog\n"))
    assert clip.location == clip.url == "https://e.org/a.wav"


@pytest.mark.parametrize("suffix", ["tsv", "json", "jsonl", "parquet"])
def test_tables_of_other_formats_read_the_same(tmp_path, suffix):
    frame = pd.DataFrame({"path": ["a.wav", "b.wav"], "caption": ["A dog", None], "fold": [1, 2]})
    path = tmp_path / f"t.{suffix}"
    {
        "tsv": lambda: frame.to_csv(path, sep="\t", index=False),
        "json": lambda: frame.to_json(path, orient="records"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(path),
    }[suffix]()
    assert [(clip.captions, clip.fold) for clip in clips("csv", path)] == [(("A dog",), 1), ((), 2)]


def test_bytes_that_are_not_utf8_do_not_break_a_table(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path,caption\nx.wav,Caf\xe9 noise\n")
    (clip,) = clips("csv", tmp_path / "t.csv")
    assert re.fullmatch("Caf\N{REPLACEMENT CHARACTER}+ noise", clip.captions[0])


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_a_table_as_spreadsheets_write_unicode_is_read(tmp_path, order):
    (tmp_path / "t.tsv").write_bytes("\ufeffpath\tcaption\nx.wav\tCaf\u00e9 noise\n".encode(order))
    assert [clip.captions for clip in clips("csv", tmp_path / "t.tsv")] == [("Caf\u00e9 noise",)]
    (tmp_path / "t.json").write_bytes('\ufeff[{"path": "x.wav", "caption": "Caf\u00e9 noise"}]'.encode(order))
    assert [clip.captions for clip in clips("csv", tmp_path / "t.json")] == [("Caf\u00e9 noise",)]


def test_lists_of_a_parquet_table_are_several_captions(tmp_path):
    pd.DataFrame({"path": ["a.wav"], "captions": [np.array(["One", "Two"])]}).to_parquet(tmp_path / "t.parquet")
    assert clips("csv", tmp_path / "t.parquet")[0].captions == ("One", "Two")


def test_captions_are_one_clean_line_each(tmp_path):
    (clip,) = clips("csv", table(tmp_path, 'path,caption\nx.wav,"  A\u202e dog\n\x07 barks\te\u0301 "\n'))
    assert clip.captions == ("A dog barks \u00e9",)


def test_a_fold_means_train_and_else_the_split_depends_on_the_id_alone(tmp_path):
    assert next(prepare([Clip("x/1", "x", fold=4)])).split == "train"
    many = [clip.split for clip in prepare(Clip(f"x/{i}", "x") for i in range(4000))]
    again = [clip.split for clip in prepare(Clip(f"x/{i}", "x") for i in reversed(range(4000)))]
    assert many == again[::-1]
    assert 0.88 < many.count("train") / 4000 < 0.92 and 0.04 < many.count("test") / 4000 < 0.06


def test_a_plan_counts_clips_after_grouping_and_bytes_and_hours_where_known(tmp_path):
    write(tmp_path / "a.wav")
    path = table(tmp_path, "path,caption,duration\na.wav,One,1800\na.wav,Two,1800\n")
    planned = plan(source("csv"), path, tmp_path / "out", reading=Reading())
    assert {key: planned[key] for key in ("rows", "hours", "bytes")} == {
        "rows": 1, "hours": 0.5, "bytes": (tmp_path / "a.wav").stat().st_size,
    }  # fmt: skip
    assert planned["disk_bytes"] > 10**8 and planned["seconds"] > 1
    done = cli("build-dataset", "csv", "--input", path, "--out", tmp_path / "out", "--dry-run", "--json")
    assert json.loads(done.stdout) == planned
    assert not (tmp_path / "out").exists()


def test_a_plan_says_null_for_what_is_not_known(tmp_path):
    path = table(tmp_path, "url,caption\nhttps://e.org/a.wav,A dog\n")
    planned = plan(source("csv"), path, tmp_path / "out", reading=Reading())
    assert planned == {"rows": 1, "hours": None, "bytes": None, "disk_bytes": None, "seconds": None}


def test_an_unknown_source_is_a_sentence():
    with pytest.raises(BuildError, match="choose one of"):
        source("radio")


def test_every_source_has_a_card_with_its_licence_and_how_to_obtain_it():
    for name in SOURCES:
        card = source(name).card
        assert all(card[key] for key in ("title", "license", "obtain", "captions", "splits", "text"))
    assert {path.stem for path in (ROOT / "datacards").glob("*.md")} == set(SOURCES)
