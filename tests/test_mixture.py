"""Recipes: several sources as one dataset."""

import json
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, cli, write

from pipelines.disk import BuildError
from pipelines.sources import SOURCES, Reading, source

RECIPE = """
title = "Two folders"
[[source]]
name = "folder"
input = "dogs"
published = { clips = 3, hours = 0.5 }
[[source]]
name = "sonniss"
input = "effects"
weight = 2.0
"""


def recipe(folder: Path, text: str = RECIPE) -> Path:
    write(folder / "dogs" / "a dog barks.wav")
    path = folder / "two.toml"
    path.write_text(text)
    return path


def test_clips_of_all_sources_come_one_after_another_under_their_own_names(tmp_path):
    path = recipe(tmp_path)
    write(tmp_path / "effects" / "Glass_Break.wav", hertz=700)
    clips = list(source("recipe").clips(path, Reading()))
    assert [(clip.source, clip.id) for clip in clips] == [
        ("folder", "folder/a dog barks.wav"), ("sonniss", "sonniss/Glass_Break.wav"),
    ]  # fmt: skip


def test_what_is_missing_is_listed_with_how_to_obtain_it_unless_the_rest_is_wanted(tmp_path, capsys):
    path = recipe(tmp_path)
    with pytest.raises(BuildError, match=r"1 of 2 sources are not there. sonniss in .*effects.*--available"):
        list(source("recipe").clips(path, Reading()))
    assert [clip.source for clip in source("recipe").clips(path, Reading(available=True))] == ["folder"]
    assert "without sonniss" in capsys.readouterr().err


def test_missing_sources_are_told_before_missing_evaluation_corpora(tmp_path):
    path = recipe(tmp_path, 'exclude_evaluation = ["esc50"]\n' + RECIPE)
    done = cli("build-dataset", "recipe", "--input", path, "--out", tmp_path / "out", check=False)
    assert done.returncode == 1 and "1 of 2 sources are not there. sonniss" in done.stderr
    assert not (tmp_path / "out/build/recipe.json").exists()


def test_inputs_are_below_the_data_root_where_one_is_given(tmp_path):
    path = recipe(tmp_path / "recipes")
    write(tmp_path / "data" / "dogs" / "x dog.wav")
    reading = Reading(available=True, data_root=str(tmp_path / "data"))
    assert [clip.id for clip in source("recipe").clips(path, reading)] == ["folder/x dog.wav"]


@pytest.mark.parametrize(
    "text", ['title = "x"', "[[source]]\nname = 'nobody'\ninput = 'x'", "[[source]]\nname = 'folder'", "a = = 1",
             "[[source]]\nname = 'recipe'\ninput = 'two.toml'", RECIPE + "spice = 1",
             "source = 3", "source = [1]", "[[source]]\nname = 'folder'\ninput = 5",
             "[[source]]\nname = ['x']\ninput = 'x'", "[[source]]\nname = 'folder'\ninput = 'x'\nweight = 'a'",
             "exclude_evaluation = 'esc50'\n" + RECIPE,
             "exclude_evaluation = [5]\n" + RECIPE, RECIPE.replace('"Two folders"', "5"),
             RECIPE + "published = { clips = 'x' }",
             RECIPE.replace("sonniss", "folder")]
)  # fmt: skip
def test_a_recipe_that_says_too_little_or_too_much_is_a_sentence(tmp_path, text):
    with pytest.raises(BuildError, match=r"two\.toml"):
        list(source("recipe").clips(recipe(tmp_path, text), Reading()))


@pytest.mark.parametrize("reading", [Reading(column=("captions=text",)), Reading(labels_from_folders=True)])
def test_flags_for_one_source_are_refused_with_a_recipe(tmp_path, reading):
    with pytest.raises(BuildError, match="are for one source alone"):
        list(source("recipe").clips(recipe(tmp_path), reading))


def test_a_build_says_what_each_source_gave_beside_what_is_published_and_redoes_when_one_grows(tmp_path):
    path = recipe(tmp_path)
    write(tmp_path / "effects" / "Glass_Break.wav", hertz=700)
    out = tmp_path / "out"
    said = cli("build-dataset", "recipe", "--input", path, "--out", out).stdout
    assert "published" in said
    report = json.loads((out / "report.json").read_text())
    assert {name: each["clips"] for name, each in report["sources"].items()} == {"folder": 1, "sonniss": 1}
    assert "Two folders" in (out / "dataset" / "README.md").read_text()
    write(tmp_path / "effects" / "Rain.wav", hertz=900)
    again = json.loads(cli("build-dataset", "recipe", "--input", path, "--out", out, "--json").stdout)
    assert again["kept"] == 3


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_our_recipes_name_sources_and_evaluations_that_exist(path):
    told = source("recipe").told(path, Reading())
    assert {each["name"] for each in told["ingredients"]} <= set(SOURCES)
    assert all(source(name.partition(":")[0]).card["evaluation"] for name in told["exclude_evaluation"])
    assert tomllib.loads(path.read_text())["title"]


def test_the_630k_recipe_sums_to_the_published_table():
    told = source("recipe").told(ROOT / "recipes" / "laion-audio-630k.toml", Reading())
    assert sum(each["published"]["clips"] for each in told["ingredients"]) == 633_526 - 515_581 + 460_801
