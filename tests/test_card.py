"""The dataset card: what the Hub and `datasets` read in it, and that text from outside stays text."""

import html
import json
import shutil

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import cli, write
from markdown_it import MarkdownIt

from pipelines.card import credit, flag, front_matter, generated, inert, sources, write_card
from pipelines.sources import source

HOSTILE = "<script>alert(1)</script> | [x](javascript:alert(2)) `code` ![i](http://e.org/i.png) \\| **b** <!-- --"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    for number in range(6):
        write(folder / f"in/{number}.wav", 0.3, hertz=300 + 50 * number)
    rows = [f'{number}.wav,"{HOSTILE}","{HOSTILE}","a|b;<b>",CC-BY-4.0,{HOSTILE}' for number in range(5)]
    rows += ["5.wav,A tone,,tone,CC-BY-NC-4.0,T", "gone.wav,Gone,,tone,CC0,T"]
    table = "path,caption_1,caption_2,tags,license,title\n" + "\n".join(rows) + "\n"
    (folder / "in/table.csv").write_text(table)
    flags = ("--workers", 0, "--min-duration", 0.2, "--contact", "me@example.org")
    cli("build-dataset", "csv", "--input", folder / "in/table.csv", "--out", folder / "out", *flags)
    return folder / "out"


@pytest.fixture(scope="module")
def text(out):
    return (out / "dataset/README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_features_and_splits_are_spelled_as_datasets_itself_does(out, front):
    from datasets import DatasetInfo, Features, SplitDict
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    shards = sorted((out / "dataset/data").glob("*.parquet"))
    ours = front["dataset_info"]
    info = DatasetInfo(
        features=Features.from_arrow_schema(pq.read_schema(shards[0])),
        splits=SplitDict.from_split_dict(ours["splits"]),
        download_size=ours["download_size"], dataset_size=ours["dataset_size"],
    )  # fmt: skip
    theirs = DatasetCardData()
    DatasetInfosDict(default=info).to_dataset_card_data(theirs)
    assert ours == theirs.to_dict()["dataset_info"]
    assert sum(each["num_examples"] for each in ours["splits"]) == 6
    assert ours["download_size"] == sum(path.stat().st_size for path in shards)


def test_datasets_reads_the_card_of_a_build_and_finds_the_features_true(out, tmp_path):
    from datasets import load_dataset

    loaded = load_dataset(str(out / "dataset"), cache_dir=str(tmp_path))
    assert sum(map(len, loaded.values())) == 6


def test_the_licence_of_the_card_is_no_more_permissive_than_that_of_the_clips(front, text):
    assert front["license"] == "other" and "noncommercial" in front["license_name"]
    assert "| CC-BY-NC-4.0 | 1 | attribution, noncommercial |" in text


def test_text_from_outside_is_inert_in_markdown_and_html(text):
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text.split("---\n", 2)[2])
    assert "<script" not in page and "<img" not in page and "<!--" not in page and 'href="javascript' not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; | [x](javascript:alert(2)) `code`") >= 5
    assert "a|b" in page and "<b>" not in page and "<strong>b</strong>" not in page


def test_every_row_of_a_table_keeps_its_cells(text):
    tables = [block for block in text.split("\n\n") if "| --- |" in block]
    for block in tables:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1, block


def test_the_card_names_the_command_and_versions_but_no_folder_of_this_machine(out, text):
    assert "python cli.py build-dataset csv --input INPUT --out OUT" in text and "--min-duration 0.2" in text
    assert "pyarrow " in text and "python 3." in text
    assert str(out.parent) not in text and "me@example.org" not in text


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("limit", None, ""),
        ("available", False, ""),
        ("contact", "", ""),
        ("licenses", [], ""),
        ("samples", 0, "--samples 0"),
        ("silent_below", 0.0, "--silent-below 0.0"),
        ("column", ["caption=text", "tags=key words"], "--column caption=text --column 'tags=key words'"),
        ("captioner", "user/t5", "--captioner user/t5"),
        ("captioner", "/home/me/t5", "--captioner FILE"),
        ("labels_from_folders", True, "--labels-from-folders"),
        ("licenses", ["CC0", "CC-BY"], "--licenses CC0,CC-BY"),
        ("exclude_ids", ["1", "2"], "--exclude-ids FILE"),
        ("exclude_evaluation", ["esc50:all 3f2a"], "--exclude-evaluation esc50:all"),
        ("model", "/home/me/t5", "--model FILE"),
        ("max_words", 60, "--max-words 60"),
        ("prompt", "a 'b' `c`", """--prompt 'a '"'"'b'"'"' `c`'"""),
    ],
)
def test_a_setting_becomes_its_flag_and_a_path_does_not_show(name, value, shown):
    assert flag(name, value) == shown


def test_the_funnel_and_the_examples_stand_in_the_card(text):
    assert "| `download` | 7 | 1 | 6 |" in text and "| `shard` | 6 | 0 | 6 |" in text
    assert "| csv/5.wav | A tone | tone |" in text


def test_each_source_is_listed_and_those_with_a_datacard_are_credited():
    told = sources({"csv": {"clips": 2, "hours": 1.5, "captions": 3}, "mine": {"clips": 1, "hours": 0, "captions": 1}})
    assert "| csv | 2 | 1.50 | 3 |" in told and "**A table of sounds** (`csv`)" in told and "| mine | 1 |" in told


def test_of_a_mixture_weights_and_counts_as_published_stand_beside_ours():
    mixed = [{"name": "csv", "weight": 2.0, "published": {"clips": 9, "hours": 1.5}},
             {"name": "bbc", "weight": 1.0, "published": {}}]  # fmt: skip
    told = sources({"csv": {"clips": 2, "hours": 1, "captions": 3}}, mixed)
    assert "| csv | 2 | 9 | 1.5 |" in told and "| bbc | 1 |  |  |" in told and "| csv | 2 | 1.00 | 3 |" in told


def test_the_card_of_a_recipe_shows_its_ingredients(tmp_path):
    write(tmp_path / "dogs/a dog barks.wav")
    text = 'title = "T"\n[[source]]\nname = "folder"\ninput = "dogs"\nweight = 3\npublished = { clips = 7 }\n'
    (tmp_path / "t.toml").write_text(text)
    cli("build-dataset", "recipe", "--input", tmp_path / "t.toml", "--out", tmp_path / "out")
    assert "| folder | 3 | 7 |  |" in (tmp_path / "out/dataset/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("audio", "said"), [(40, True), (0, False)])
def test_the_limits_of_comparing_sounds_are_said_where_sounds_were_compared(out, tmp_path, audio, said):
    shutil.copytree(out, tmp_path / "out")
    report = json.loads((out / "report.json").read_text())
    report["contamination"] = [{"name": "esc50", "compared": {"clips": 40, "audio": audio}, "removed": {}}]
    write_card(tmp_path / "out", "csv", source("csv").card, report, {"CC0-1.0": 1})
    assert ("By sound: clips from about 3 s on" in (tmp_path / "out/dataset/README.md").read_text("utf-8")) is said


def test_generated_captions_are_listed_by_who_wrote_them():
    told = generated({"generated": {"user/t5@12ab": 7, "template": 2}, "debiased": 1200})
    assert "| user/t5&#64;12ab | 7 |" in told and "| template | 2 |" in told and "1,200 words" in told
    assert generated({"generated": {}, "debiased": 0}) == generated({}) == ""


def test_a_corpus_is_cited_with_its_counts_as_published():
    card = {"title": "T", "homepage": "https://e.org", "license": "CC0", "captions": "from <label>",
            "counts": {"clips": 2000, "hours": 2.8}, "citation": "@inproceedings{t}\n"}  # fmt: skip
    told = credit("t", card)
    assert "As published: 2,000 clips, 2.8 hours." in told and "```\n@inproceedings{t}\n```" in told
    assert "https://e.org" in told and "from &lt;label>" in told


def test_languages_of_less_than_one_in_a_hundred_clips_are_left_out_of_the_front_matter(out):
    report = json.loads((out / "report.json").read_text()) | {"languages": {"en": 990, "de": 12, "la": 3}, "kept": 1000}
    assert front_matter(out / "dataset", source("csv").card, report, {"CC0-1.0": 1})["language"] == ["en", "de"]


def test_nothing_of_an_inert_text_is_lost():
    assert html.unescape(inert(HOSTILE)) == " ".join(HOSTILE.split())
