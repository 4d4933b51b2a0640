"""Training of captioners: what they learn from, that they learn it, and that a killed run loses nothing."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from safetensors.torch import load_file, save_file

from pipelines.captioner import Captioner
from pipelines.disk import BuildError
from pipelines.faithfulness import coverage, invention
from pipelines.lessons import batches, make_up, read_lessons, vary
from pipelines.train_captioner import Training, learning_rate, train_captioner, train_tokenizer

SOUNDS = {"dog": "barks", "cat": "meows", "bell": "rings", "engine": "hums", "duck": "quacks", "bird": "chirps"}
CAPTIONS = [f"A {one} {SOUNDS[one]} and a {two} {SOUNDS[two]}" for one in SOUNDS for two in SOUNDS if one != two]
TINY = Training(epochs=2, batch_size=4, lr=3e-2, warmup=5, pieces=80, width=32, heads=2,
                layers=1, device="cpu", log_every=3, save_every=4, sample_every=1000)  # fmt: skip


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> Path:
    return table(tmp_path_factory.mktemp("captions") / "captions.csv", CAPTIONS)


@pytest.fixture(scope="module")
def trained(captions, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    train_captioner([captions], out, "", replace(TINY, epochs=40, dropout=0.0, drop=0.0, made_up=0.0))
    return out


def table(path: Path, captions: list[str], column: str = "caption") -> Path:
    path.write_text(f"{column}\n" + "\n".join(captions) + "\n", encoding="utf-8")
    return path


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_trained_captioner_says_its_keywords_and_nothing_else(trained):
    sets = [("bark", "bell", "dog", "ring"), ("meow", "cat", "hum", "engine")]
    for keywords, found in zip(sets, Captioner(str(trained)).generate(sets), strict=True):
        sentence = found[0][0]
        assert coverage(sentence, keywords) == 1 and invention(sentence, keywords) == 0, sentence


def test_the_loss_falls_and_the_log_tells_every_step_it_should(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(3, 319, 3), 320]
    assert lines[-1]["loss"] < 0.3 < 2 < lines[0]["loss"]
    assert lines[-1]["epoch"] == 40


def test_the_folder_of_a_finished_run_is_a_model_with_its_prompt_and_no_checkpoint(trained):
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl"} <= {
        p.name for p in trained.iterdir()
    }
    assert json.loads((trained / "captioner.json").read_text()) == {"prompt": " "}
    assert {path.name for path in (trained / "training").iterdir()} == {"settings.json", ".lock"}


def test_a_finished_run_is_not_trained_again(trained, captions):
    before = (trained / "model.safetensors").stat().st_mtime_ns
    line = train_captioner([captions], trained, "", replace(TINY, epochs=40, dropout=0.0, drop=0.0, made_up=0.0))
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    assert line["step"] == 320


def test_fine_tuning_starts_from_what_the_model_knows(trained, captions, tmp_path):
    train_captioner([captions], tmp_path / "out", str(trained), replace(TINY, epochs=1, lr=1e-3, drop=0.0, made_up=0.0))
    assert losses(tmp_path / "out")[0] < 1 < losses(trained)[0]


def test_a_killed_run_ends_with_the_same_weights_as_another(captions, tmp_path):
    config = replace(TINY, epochs=6)
    once, killed = tmp_path / "once", tmp_path / "killed"
    train_captioner([captions], once, "", config)
    code = "import sys; from pipelines.train_captioner import *; train_captioner([sys.argv[1]], sys.argv[2], '', "
    line = [sys.executable, "-c", f"{code}{config!r})", str(captions), str(killed)]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (killed / "training" / "checkpoint.pt").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "config.json").exists(), "it was done before it was killed"
    train_captioner([captions], killed, "", config)
    for name in ("model.safetensors", "tokenizer.json", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (once / name).read_bytes(), name


def test_the_seed_makes_another_model(captions, tmp_path):
    for seed in (0, 1):
        train_captioner([captions], tmp_path / str(seed), "", replace(TINY, epochs=1, seed=seed))
    assert losses(tmp_path / "0") != losses(tmp_path / "1")


def test_other_settings_or_captions_are_refused_in_the_same_folder(trained, captions, tmp_path):
    with pytest.raises(BuildError, match=r"epochs was 40, is now 2.*another --out"):
        train_captioner([captions], trained, "", TINY)
    with pytest.raises(BuildError, match="captions was 30, is now 1"):
        other = table(tmp_path / "other.csv", ["A goat bleats"])
        train_captioner([other], trained, "", replace(TINY, epochs=40, dropout=0.0, drop=0.0, made_up=0.0))


def test_another_model_is_not_written_over(captions, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BuildError, match="not trained here"):
        train_captioner([captions], tmp_path, "", TINY)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 0}, "--epochs is 0"),
        ({"drop": 1.5}, "--drop is 1.5: give a share from 0 to 1"),
        ({"precision": "fp8"}, "give fp32 or bf16"),
        ({"width": 33}, "33 cannot be shared by 2 heads"),
        ({"device": "abacus"}, "give cpu, cuda or auto"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(settings, told, captions, tmp_path):
    with pytest.raises(BuildError, match=told):
        train_captioner([captions], tmp_path / "out", "", replace(TINY, **settings))


def test_captions_and_models_that_are_none_are_told_in_a_sentence(captions, tmp_path):
    with pytest.raises(BuildError, match="no column caption, only text"):
        train_captioner([table(tmp_path / "text.csv", ["A dog barks"], "text")], tmp_path / "out", "", TINY)
    with pytest.raises(BuildError, match="no caption with a content word"):
        train_captioner([table(tmp_path / "the.csv", ["It is the"])], tmp_path / "out", "", TINY)
    with pytest.raises(BuildError, match=r"no captioner .* seq2seq model"):
        train_captioner([captions], tmp_path / "out", str(tmp_path), TINY)


def test_a_model_without_finite_weights_is_not_trained(trained, captions, tmp_path):
    broken = shutil.copytree(trained, tmp_path / "broken", ignore=shutil.ignore_patterns("training"))
    weights = load_file(broken / "model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, broken / "model.safetensors")
    with pytest.raises(BuildError, match="no finite loss at step 0"):
        train_captioner([captions], tmp_path / "out", str(broken), TINY)


def test_a_dataset_teaches_the_captions_of_its_train_split_only(tmp_path):
    (tmp_path / "data").mkdir()
    for split, several in {"train": [["A dog  barks", "Barking"], ["It rains"]], "test": [["A cat meows"]]}.items():
        pq.write_table(pa.table({"captions": several}), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert read_lessons([tmp_path]) == [
        (("dog", "bark"), "A dog barks"),
        (("bark",), "Barking"),
        (("rain",), "It rains"),
    ]


def test_an_epoch_holds_every_caption_once_and_is_the_same_whenever_it_is_asked_for(captions):
    lessons = read_lessons([captions])
    first = batches(lessons, (0, 3), 4, 0.2, 0.1, 0.0)
    assert sorted(text for batch in first for _, text in batch) == sorted(CAPTIONS)
    assert first == batches(lessons, (0, 3), 4, 0.2, 0.1, 0.0) != batches(lessons, (0, 4), 4, 0.2, 0.1, 0.0)


def test_a_batch_holds_captions_of_like_length():
    lessons = [(("dog",), "x" * (1 + 37 * number % 100)) for number in range(100)]
    for batch in batches(lessons, (0, 0), 10, 0.0, 0.0, 0.5):
        lengths = [len(text) for _, text in batch]
        assert max(lengths) - min(lengths) < 10


def test_keywords_are_shuffled_and_one_may_be_left_out_but_never_the_only_one():
    rng, keywords = np.random.default_rng(0), ("dog", "bark", "rain")
    assert {vary(keywords, rng, 0.0, 1.0) for _ in range(20)} == {keywords}
    assert len({vary(keywords, rng, 0.0, 0.0) for _ in range(100)}) == 6
    assert {len(vary(keywords, rng, 1.0, 0.0)) for _ in range(20)} == {2}
    assert vary(("rain",), rng, 1.0, 0.0) == ("rain",)


def test_a_word_is_made_up_in_the_keywords_and_wherever_the_caption_has_it():
    rng = np.random.default_rng(0)
    made = {make_up((("bark", "give"), "Barks and a barking, gave"), ["motor", "whistle"], rng) for _ in range(99)}
    assert made == {
        (("bark", "give"), "Barks and a barking, gave"),  # "give" is not found in it
        *(((new, "give"), f"{new}s and a {new}ing, gave") for new in ("mottor", "motstle", "whistor", "whisstle"))
    }  # fmt: skip


def test_the_tokenizer_is_always_the_same_and_keeps_a_sentence_as_it_is_but_for_capitals(captions):
    lessons = [*read_lessons([captions]), (("p.a.",), "A P.A. announcement, the crowd's cheer")]
    first, again = (train_tokenizer(lessons, 200) for _ in range(2))
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    ids = first("A P.A. announcement, the crowd's cheer")["input_ids"]
    assert ids.count(first.eos_token_id) == 1 and ids[-1] == first.eos_token_id
    assert first.decode(ids, skip_special_tokens=True) == "a p.a. announcement, the crowd's cheer"


def test_the_learning_rate_rises_falls_and_ends_near_nothing():
    rates = [learning_rate(step, 100, 10, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 1e-3
