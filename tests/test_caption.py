"""The stage caption with a captioner: what is kept, what falls back, and that a finished build is captioned anew."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pyarrow.parquet as pq
import pytest
from captioners import NOUNS, tiny_captioner
from conftest import ROOT, cli, tree, write

from pipelines.build import STAGES, build_dataset
from pipelines.caption import Caption
from pipelines.clip import Clip, read_clips, write_clips
from pipelines.disk import BuildError
from pipelines.engine import Step, engine
from pipelines.recaption import recaption
from pipelines.run import part_path, run_part
from pipelines.sources import source


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Caption(captioner=str(tiny_captioner(tmp_path_factory.mktemp("model") / "tiny")), most_tokens=16).pinned()


def clip_of(*tags: str, **more) -> Clip:
    return Clip("x/1", "x", **({"tags": tags, "duration": 5.0} | more))


def only(stage, clip) -> Clip:
    (done,) = stage([clip])
    return done


def test_without_a_captioner_nothing_is_generated_and_no_torch_loaded():
    code = (
        "import sys; from pipelines.build import STAGES; from pipelines.clip import Clip\n"
        "(clip,) = STAGES[-1]([Clip('x/1', 'x', tags=('dog',))])\n"
        "print(clip.captions, clip.generated, 'torch' in sys.modules, 'simplemma' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "('The sound of dog.',) () False False\n"


def test_a_faithful_sentence_is_kept_with_its_scores_and_its_author(stage):
    clip = only(stage, clip_of("dog", captions=("Published.",)))
    assert clip.captions == ("Published.",)
    assert clip.generated == ("A dog is heard.",)
    assert clip.generated_by == f"tiny@{stage.captioner_revision}"
    (scores,) = clip.generated_scores
    assert (scores["coverage"], scores["invention"]) == (1.0, 0.0) and -1 < scores["logprob"] < 0


def test_where_no_sentence_is_faithful_enough_the_template_stands_and_says_so(stage):
    clip = only(stage, clip_of("zebra", "helicopter"))
    assert clip.generated == clip.captions == ("The sounds of zebra and helicopter.",)
    assert clip.generated_by == "template"
    assert clip.generated_scores == ({"coverage": 1.0, "invention": 0.0, "logprob": 0.0},)


def test_thresholds_decide_what_is_faithful_enough(stage):
    tags = ("dog", "zebra")
    assert only(replace(stage, min_coverage=0.9), clip_of(*tags)).generated_by == "template"
    lax = only(replace(stage, min_coverage=0.5, max_invention=1.0), clip_of(*tags))
    assert lax.generated_by != "template" and lax.generated_scores[0]["coverage"] == 0.5


@pytest.mark.parametrize(
    ("clip", "written"),
    [
        (clip_of("dog", duration=1.9), False),
        (clip_of("dog", duration=None), True),
        (clip_of("48khz", "zoom-h4n", captions=("A dog.",)), False),
        (clip_of(labels=("dog",)), True),
    ],
)
def test_clips_that_are_short_or_have_no_keywords_are_left_alone(stage, clip, written):
    assert bool(only(stage, clip).generated) is written


def test_a_clip_with_nothing_to_say_is_rejected_as_without_a_captioner(stage):
    assert only(stage, clip_of()).reason == "no-caption"


def test_keywords_come_from_where_they_are_asked_from(stage):
    clip = clip_of("rain", captions=("The dog is barking loudly.",))
    asked = {kind: replace(stage, keywords=kind).keywords_of(clip) for kind in ("tags", "captions", "both")}
    assert asked["tags"] == ("rain",)
    assert "dog" in asked["captions"] and "rain" not in asked["captions"]
    assert asked["both"][0] == "rain" and "dog" in asked["both"]
    assert replace(stage, keywords="captions").keywords_of(replace(clip, language="fr")) == ()
    assert len(replace(stage, most_keywords=3).keywords_of(clip_of(*NOUNS))) == 3


def test_several_sentences_are_kept_on_request_each_with_its_scores(stage):
    clip = only(replace(stage, generations=2, samples=6, min_coverage=1.0), clip_of("dog", "rain"))
    assert len(set(clip.generated)) == len(clip.generated_scores) == 2


def test_persons_are_written_of_without_their_sex_on_request(stage):
    clip = clip_of("woman", "zebra")
    assert "woman" in only(stage, clip).generated[0]
    assert "woman" not in only(replace(stage, debias=True), clip).generated[0]


def test_sentences_that_debiasing_makes_equal_are_kept_once(stage):
    stage = replace(stage, generations=2, debias=True, min_coverage=0.0, max_invention=1.0)
    found = stage.fields(("speech",), [("A man speaks.", -0.1), ("A woman speaks.", -0.2)])
    assert found["generated"] == ("A person speaks.",)
    assert len(found["generated_scores"]) == found["debiased"] == 1


def test_a_build_that_continues_keeps_the_revision_of_its_captioner():
    held = {"captioner": "user/t5", "captioner_revision": "0123456789" * 4}
    assert Caption(captioner="user/t5").pinned(held).captioner_revision == held["captioner_revision"]
    gone = {"captioner": "/gone/t5", "captioner_revision": "0123456789ab"}
    assert Caption(captioner="/gone/t5").pinned(gone).captioner_revision == "0123456789ab"


@pytest.mark.parametrize(
    "wrong",
    [
        {"keywords": "words"},
        {"precision": "fp8"},
        {"beams": 0},
        {"samples": -1},
        {"temperature": 0.0},
        {"generations": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(BuildError, match=next(iter(wrong)).replace("_", "-")):
        Caption(**wrong)


def test_the_stage_stays_a_small_pickle_after_use(stage):
    only(stage, clip_of("dog"))
    assert len(pickle.dumps(stage)) < 1000


@pytest.mark.slow
def test_parts_are_captioned_alike_here_and_in_a_pool_that_loads_the_model_once_an_actor(stage, tmp_path):
    def loaded(_: object) -> tuple[int, int]:
        from pipelines.captioner import captioner

        return os.getpid(), captioner.cache_info().misses

    for part in range(6):
        for build in ("here", "there"):
            clips = [clip_of(NOUNS[part], NOUNS[(part + i) % 10]) for i in range(4)]
            write_clips(part_path(tmp_path / build, "dedup", part), clips)
    with engine(workers=0) as run:
        list(run([Step(partial(run_part, tmp_path / "here", "dedup", [stage]), pooled=True)], range(6)))
    with engine(workers=2) as run:
        steps = [Step(partial(run_part, tmp_path / "there", "dedup", [stage]), pooled=True), Step(loaded, pooled=True)]
        found = {result for result in run(steps, range(6)) if isinstance(result, tuple)}
    assert len({process for process, _ in found}) <= 2 and {loads for _, loads in found} <= {0, 1}
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


@pytest.mark.slow
def test_a_dead_actor_of_the_pool_is_replaced(tmp_path):
    def die_once(item: int) -> int:
        mark = tmp_path / str(item)
        if item % 2 and not mark.exists():
            mark.touch()
            os._exit(1)
        return item

    with engine(workers=2) as run:
        assert sorted(run([Step(die_once, pooled=True)], range(4))) == [0, 1, 2, 3]


# ---- a finished build


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A build of 6 parts with audio, captioned by the template."""
    folder = tmp_path_factory.mktemp("finished")
    lines = ["file_name,tags"]
    for n in range(24):
        write(folder / f"in/{n}.wav", 2.5 if n % 5 else 1.0, hertz=200 + 20 * n)
        lines.append(f"{n}.wav,{NOUNS[n % 10]};{NOUNS[n // 3 % 10]}")
    (folder / "in/metadata.csv").write_text("\n".join(lines) + "\n")
    cli("build-dataset", "folder", "--input", folder / "in", "--out", folder / "out", "--part-rows", 4, "--workers", 0)
    return folder


@pytest.fixture(scope="module")
def again(finished, stage, tmp_path_factory):
    """The same build, captioned anew."""
    out = shutil.copytree(finished / "out", tmp_path_factory.mktemp("again") / "out")
    recaption(out, stage, workers=0)
    return out


def test_a_finished_build_is_captioned_anew_without_opening_audio(finished, again, stage):
    before, after = tree(finished / "out"), tree(again)
    untouched = {name for name in before if name.startswith("build/") and "/caption/" not in name} - {
        "build/recipe.json"
    }
    assert {name for name in untouched if before[name] != after[name]} == set()
    rows = [row for path in again.glob("dataset/data/*.parquet") for row in pq.read_table(path).to_pylist()]
    kinds = [row["generated_by"] for row in rows]
    assert len(rows) == 24 and kinds.count("") == 5 and kinds.count(f"tiny@{stage.captioner_revision}") > 5
    assert json.loads((again / "build/recipe.json").read_text())["stages"]["caption"]["captioner"] == stage.captioner
    assert "are heard" in (again / "dataset/README.md").read_text()
    assert json.loads(cli("verify", again, "--json").stdout)["problems"] == []


def test_it_is_the_dataset_that_a_build_with_the_captioner_gives(finished, again, stage, tmp_path):
    stages = [*STAGES[:-1], stage]
    build_dataset(source("folder"), finished / "in", tmp_path / "out", stages=stages, part_rows=4, workers=0)
    assert tree(tmp_path / "out") == tree(again)


def test_done_again_it_writes_nothing(again, stage):
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*") if path.is_file() and path.name != ".lock"}
    recaption(again, stage, workers=0)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_taken_back_the_build_is_as_it_was(finished, again, tmp_path):
    out = shutil.copytree(again, tmp_path / "out")
    recaption(out, Caption(), workers=0)
    assert tree(out) == tree(finished / "out")


def test_killed_among_its_parts_and_its_shards_it_ends_in_the_same_bytes(finished, again, stage, tmp_path):
    out = shutil.copytree(finished / "out", tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; from pipelines.caption import Caption\n"
        "from pipelines.recaption import recaption\n"
        f"recaption(Path(sys.argv[1]), Caption(captioner={stage.captioner!r}, most_tokens=16), workers=0)"
    )
    line = [sys.executable, "-c", code, str(out)]
    for wanted in ("build/caption/part-00002.parquet", "dataset/data/*.parquet"):
        process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL)
        while not list(out.glob(wanted)) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(line, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    assert tree(out) == tree(again)


def test_a_model_trained_anew_in_its_folder_redoes_the_captions(again, stage, tmp_path):
    out, model = shutil.copytree(again, tmp_path / "out"), shutil.copytree(stage.captioner, tmp_path / "tiny")
    recaption(out, replace(stage, captioner=str(model)), workers=0)
    (model / "captioner.json").write_text('{"prompt": ", "}')
    recaption(out, Caption(captioner=str(model), most_tokens=16), workers=0)
    held = json.loads((out / "build/recipe.json").read_text())["stages"]["caption"]["captioner_revision"]
    (clips, *_) = [read_clips(path) for path in sorted(out.glob("build/caption/part-*.parquet"))]
    assert held != stage.captioner_revision and any(clip.generated_by == f"tiny@{held}" for clip in clips)


def test_the_same_model_in_another_folder_redoes_nothing(again, stage, tmp_path, capsys):
    out, model = shutil.copytree(again, tmp_path / "out"), shutil.copytree(stage.captioner, tmp_path / "there/tiny")
    recaption(out, Caption(captioner=str(model), most_tokens=16), workers=0)
    assert "redoing" not in capsys.readouterr().err


def test_a_finished_build_needs_its_captioner_no_more(finished, again, stage, tmp_path):
    out, model = shutil.copytree(again, tmp_path / "out"), shutil.copytree(stage.captioner, tmp_path / "tiny")
    moved = Caption(captioner=str(model), most_tokens=16)
    recaption(out, moved, workers=0)
    shutil.rmtree(model)
    before = tree(out)
    recaption(out, moved, workers=0)
    build_dataset(source("folder"), finished / "in", out, stages=[*STAGES[:-1], moved], part_rows=4, workers=0)
    assert tree(out) == before


def test_a_build_stays_finished_where_the_captioner_cannot_be_loaded(finished, stage, tmp_path):
    out, model = shutil.copytree(finished / "out", tmp_path / "out"), shutil.copytree(stage.captioner, tmp_path / "bad")
    (model / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BuildError, match="damaged"):
        recaption(out, Caption(captioner=str(model)), workers=0)
    assert tree(out) == tree(finished / "out")
    (model / "tokenizer.json").write_text("{}")
    stages = [*STAGES[:-1], Caption(captioner=str(model))]
    with pytest.raises(BuildError, match="damaged"):
        build_dataset(source("folder"), finished / "in", out, stages=stages, part_rows=4, workers=0)
    assert tree(out) == tree(finished / "out")


def test_the_settings_of_a_build_hold_until_a_flag_changes_them(finished, stage, tmp_path):
    out = shutil.copytree(finished / "out", tmp_path / "out")
    recaption(out, replace(stage, keywords="both", debias=True), workers=0)
    cli("caption", out, "--beams", 2, "--workers", 0)
    held = json.loads((out / "build/recipe.json").read_text())["stages"]["caption"]
    assert (held["keywords"], held["debias"], held["beams"]) == ("both", True, 2)
    assert held["captioner"] == stage.captioner
    cli("caption", out, "--captioner", "", "--workers", 0)
    assert json.loads((out / "build/recipe.json").read_text())["stages"]["caption"]["captioner"] == ""
    done = cli("caption", out, "--debias", check=False)
    assert done.returncode == 1 and "give --captioner too" in done.stderr
    assert "no build in" in cli("caption", tmp_path, "--debias", check=False).stderr


def test_a_build_of_a_source_of_ones_own_is_captioned_anew(finished, stage, tmp_path):
    out = shutil.copytree(finished / "out", tmp_path / "out")
    recipe = json.loads((out / "build/recipe.json").read_text())
    recipe["stages"]["manifest"]["source"] = "mine"
    (out / "build/recipe.json").write_text(json.dumps(recipe))
    recaption(out, stage, workers=0)
    assert "source `mine`" in (out / "dataset/README.md").read_text()
    before = tree(out)
    (out / "build/recipe.json").write_text(json.dumps({name: recipe[name] for name in recipe if name != "card"}))
    with pytest.raises(BuildError, match="no card of its source 'mine'"):
        recaption(out, Caption(), workers=0)
    assert {name for name, held in tree(out).items() if before[name] != held} == {"build/recipe.json"}


def test_what_cannot_be_captioned_anew_is_told(finished, stage, tmp_path):
    with pytest.raises(BuildError, match="no build in"):
        recaption(tmp_path, stage)
    out = shutil.copytree(finished / "out", tmp_path / "out")
    next(out.glob("build/resample/*.pack")).unlink()
    with pytest.raises(BuildError, match="run build-dataset with the captioner's flags"):
        recaption(out, stage)
    assert (out / "dataset/README.md").exists(), "what was finished must stay as it is"
