"""The paper's evaluations over all corpora, built by their adapters from stand-ins in the published layouts."""

import json
import shlex
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pairs
import pytest
import soundfile
import torch
from conftest import cli, write

from clap import bootstrap, metrics, paper, tables
from clap.config import ConfigError
from clap.data import DataError, open_split
from clap.model import CLAP
from clap.systems import digest
from pipelines.build import build_dataset
from pipelines.sources import source

ESC50 = "filename,fold,target,category,esc10,src_file,take\n"
URBAN = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
CLOTHO = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
LABELS = 'index,mid,display_name\n0,/m/a,Speech\n1,/m/b,"Male speech, man speaking"\n2,/m/c,Vehicle\n'
WORDS = ("dog", "clock alarm", "siren", "car horn", "blues", "jazz", "playing violin, fiddle", "Purr", "Cat", "Music",
         "Speech", "Male speech, man speaking", "Vehicle")  # fmt: skip
PROMPTS = [*paper.SOUNDS, *paper.SONGS]
N = 6


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def sound(path: Path, i: int) -> None:
    """A tone of its own, some longer than the model's window."""
    write(path, 0.2 + 0.07 * (i % 5), 16_000, 200 + 131 * i)


def caption(corpus: str, i: int, j: int) -> str:
    """Of AudioCaps no two are the same, of Clotho some are."""
    return f"{WORDS[i]} and {WORDS[-j - 1]} in {corpus if corpus == 'audiocaps' or j else ''}".replace(",", "")


def esc50(root: Path) -> None:
    names = [f"{1 + i % 5}-{i}-A-{i % 2}.wav" for i in range(2 * N)]
    rows = [f"{n},{n[0]},{n[-5]},{('dog', 'clock_alarm')[int(n[-5])]},True,{7 * i},A\n" for i, n in enumerate(names)]
    put(root / "meta/esc50.csv", ESC50 + "".join(rows))
    for i, name in enumerate(names):
        sound(root / "audio" / name, i)


def urbansound8k(root: Path) -> None:
    kinds = [(1, "car_horn"), (8, "siren"), (3, "dog_bark")]
    rows = [(f"{900 + i}-{kinds[i % 3][0]}-0-0.wav", 1 + i % 10, *kinds[i % 3]) for i in range(2 * N)]
    table = (f"{n},{n.split('-')[0]},0,1,1,{fold},{c},{name}\n" for n, fold, c, name in rows)
    put(root / "metadata/UrbanSound8K.csv", URBAN + "".join(table))
    for i, (name, fold, *_) in enumerate(rows):
        sound(root / f"audio/fold{fold}/{name}", i)


def gtzan(root: Path) -> None:
    for i in range(N):
        genre = ("blues", "jazz")[i % 2]
        sound(root / f"genres/{genre}/{genre}.{i:05d}.au", i)


def vggsound(root: Path) -> None:
    labels = ['"playing violin, fiddle"', "dog", "siren"]
    rows = [f"video{i},{10 * i},{labels[i % 3]},{'test' if i < N else 'train'}\n" for i in range(N + 2)]
    put(root / "vggsound.csv", "".join(rows))
    for i in range(N + 2):
        sound(root / f"video/video{i}_{10 * i:06d}.wav", i)


def fsd50k(root: Path) -> None:
    put(root / "FSD50K.ground_truth/dev.csv", 'fname,labels,mids,split\n1,"Purr,Cat","/m/1,/m/2",train\n')
    kinds = ['"Purr,Cat"', "Music", '"Cat,Music"']
    rows = [f"{100 + i},{kinds[i % 3]},/m/x\n" for i in range(N)]
    put(root / "FSD50K.ground_truth/eval.csv", "fname,labels,mids\n" + "".join(rows))
    for i in range(N):
        sound(root / f"FSD50K.eval_audio/{100 + i}.wav", i)
    sound(root / "FSD50K.dev_audio/1.wav", N)


def audioset(root: Path) -> None:
    kinds = ['"/m/a,/m/b"', '"/m/c"', '"/m/c,/m/a"']
    put(root / "class_labels_indices.csv", LABELS)
    put(root / "eval_segments.csv", "".join(f"ytid{i}, 0.000, 10.000, {kinds[i % 3]}\n" for i in range(N)))
    for i in range(N):
        sound(root / f"audio/eval/Yytid{i}.wav", i)


def clotho(root: Path) -> None:
    for start, part in ((0, "development"), (N, "evaluation")):
        rows = (f"{part}{i}.wav," + ",".join(caption("clotho", i, j) for j in range(5)) for i in range(N))
        put(root / f"clotho_captions_{part}.csv", CLOTHO + "\n".join(rows) + "\n")
        for i in range(N):
            sound(root / f"{part}/{part}{i}.wav", start + i)


def audiocaps(root: Path) -> None:
    rows = (f"{5 * i + j},yt{i},{10 * i},{caption('audiocaps', i, j)}" for i in range(N) for j in range(1 + i % 5))
    put(root / "test.csv", "audiocap_id,youtube_id,start_time,caption\n" + "\n".join(rows) + "\n")
    for i in range(N):
        sound(root / f"audio/yt{i}_{10 * i}.wav", i)


STANDINS = (esc50, urbansound8k, gtzan, vggsound, fsd50k, audioset, clotho, audiocaps)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All corpora, built."""
    published, built = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("built")
    for make in STANDINS:
        make(published / make.__name__)
        build_dataset(source(make.__name__), published / make.__name__, built / make.__name__, workers=0)
    return built


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    sentences = [line.replace("{}", word) for line in PROMPTS for word in (*WORDS, "dog bark audiocaps clotho")]
    return CLAP.create(pairs.SMALL.model, sentences).eval()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def found(model, root, out):
    return paper.measure(model, root, out, name="a|b")


def embedded(model, root, name):
    corpus = paper.CORPORA[name]
    rows = open_split(str(root / name / "dataset"), corpus.split, (), 48_000)
    return rows, np.concatenate([model.embed_audio(rows)])


def test_every_corpus_is_scored_on_its_official_split(found):
    assert found["skipped"] == {} and found["missing"] == {}
    assert {name: each["clips"] for name, each in found["corpora"].items()} == {
        "audiocaps": N, "clotho": N, "esc50": 2 * N, "urbansound8k": 2 * N, "gtzan": N, "vggsound": N, "fsd50k": N,
        "audioset": N,
    }  # fmt: skip
    assert found["corpora"]["clotho"]["captions"] == 5 * N


@pytest.mark.parametrize("name", ["esc50", "urbansound8k", "gtzan", "vggsound"])
def test_accuracy_is_that_of_brute_force(model, root, found, name):
    rows, audio = embedded(model, root, name)
    truth = [labels[0] for labels in rows.rows["labels"].to_pylist()]
    names = sorted(set(truth))
    prompt = "This audio is a {} song." if name == "gtzan" else "This is a sound of {}."
    text = [model.embed_text([prompt.replace("{}", label)])[0] for label in names]
    guessed = [names[max(range(len(names)), key=lambda k: float(clip @ text[k]))] for clip in audio]
    right = [a == b for a, b in zip(guessed, truth, strict=True)]
    each = found["corpora"][name]
    assert each["scores"]["accuracy"] == pytest.approx(np.mean(right)) and each["scores"]["chance"] == 1 / len(names)
    for fold, accuracy in each.get("folds", {}).items():
        of_fold = [r for r, f in zip(right, rows.rows["fold"].to_pylist(), strict=True) if f == fold]
        assert accuracy == pytest.approx(np.mean(of_fold))
    assert sorted(each.get("folds", {})) == list(range(1, paper.CORPORA[name].folds + 1))


@pytest.mark.parametrize("name", ["fsd50k", "audioset"])
def test_map_is_that_of_scikit_learn(model, root, found, name):
    from sklearn.metrics import average_precision_score

    rows, audio = embedded(model, root, name)
    own = rows.rows["labels"].to_pylist()
    names = sorted({label for each in own for label in each})
    text = model.embed_text([f"This is a sound of {label}." for label in names])
    each = [average_precision_score([n in o for o in own], audio @ text[k]) for k, n in enumerate(names)]
    assert len(names) == 3 and found["corpora"][name]["scores"]["map"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("name", ["audiocaps", "clotho"])
def test_retrieval_is_that_of_brute_force(model, root, found, name):
    rows, audio = embedded(model, root, name)
    texts = [rows.captions(row) for row in range(len(rows))]
    flat = [(row, text) for row, own in enumerate(texts) for text in own]
    similar = np.array([model.embed_text([text])[0] for _, text in flat]) @ audio.T  # (captions, clips)
    place = [sorted(range(N), key=lambda k: -float(similar[q, k])).index(row) for q, (row, _) in enumerate(flat)]
    ranks = {}
    for row in range(N):
        order = sorted(range(len(flat)), key=lambda q: -float(similar[q, row]))
        ranks[row] = sorted(order.index(q) for q, (own, _) in enumerate(flat) if own == row)
    precision = [
        sum((j + 1) / (r + 1) for j, r in enumerate(own) if r < 10) / min(len(own), 10) for own in ranks.values()
    ]
    scores = found["corpora"][name]["scores"]
    assert scores["text_to_audio"]["n"] == len(flat) and scores["audio_to_text"]["n"] == N
    for k in (1, 5, 10):
        assert scores["text_to_audio"][f"R@{k}"] == pytest.approx(np.mean([r < k for r in place]))
    assert scores["text_to_audio"]["map10"] == pytest.approx(np.mean([1 / (r + 1) for r in place]))
    if name == "audiocaps":  # equal captions tie, and a tie is broken by index
        assert scores["audio_to_text"]["R@1"] == pytest.approx(np.mean([own[0] < 1 for own in ranks.values()]))
        assert scores["audio_to_text"]["map10"] == pytest.approx(np.mean(precision))


def test_every_score_lies_in_its_interval(found):
    for each in found["corpora"].values():
        scores, intervals = each["scores"], each["intervals"]
        ways = [(scores[w], intervals[w]) for w in intervals] if each["score"] == "retrieval" else [(scores, intervals)]
        assert all(low - 1e-6 <= s[key] <= high + 1e-6 for s, known in ways for key, (low, high) in known.items())


def test_an_interval_of_captions_draws_clips_with_all_their_captions():
    values, clip, counts = np.array([1.0, 0, 0, 1, 1]), np.array([0, 0, 1, 2, 2]), bootstrap.draws(3, 50, seed=5)
    assert (counts.sum(axis=0) == 3).all()
    means = [values[np.concatenate([np.flatnonzero(clip == c) for c in np.repeat(np.arange(3), col)])].mean()
             for col in counts.T.astype(int)]  # fmt: skip
    np.testing.assert_allclose(bootstrap.of_mean(values, clip, counts), np.percentile(means, (2.5, 97.5)), atol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_map_of_every_resample_is_that_of_the_clips_drawn(ties):
    rng = np.random.default_rng(0)
    scores, relevant, counts = rng.normal(size=(40, 3)), rng.random((40, 3)) < 0.2, bootstrap.draws(40, 30)
    scores = scores.round() if ties else scores
    drawn = [np.repeat(np.arange(40), column) for column in counts.T.astype(int)]
    expected = [[metrics.average_precision(scores[i, c], relevant[i, c]) for i in drawn] for c in range(3)]
    got = [bootstrap.precisions(scores[:, c], relevant[:, c], counts) for c in range(3)]
    np.testing.assert_allclose(np.nan_to_num(got), expected, atol=1e-5)
    bounds = np.percentile(np.mean(expected, axis=0), (2.5, 97.5))
    np.testing.assert_allclose(bootstrap.of_map(scores, relevant, counts), bounds, atol=1e-5)


def test_a_class_that_a_resample_left_out_is_left_out_of_its_mean():
    counts = np.array([[0, 1], [2, 1]], np.float32)
    assert np.isnan(bootstrap.precisions(np.array([1.0, 0]), np.array([True, False]), counts)).tolist() == [True, False]


def test_the_printed_command_keeps_every_clip_that_was_published(tmp_path):
    corpus, out = tmp_path / "urbansound8k", tmp_path / "here it is/urbansound8k"
    urbansound8k(corpus)
    files = sorted(corpus.glob("audio/*/*.wav"))
    write(files[0], 0.4, 8_000)
    write(files[1], 0.06)
    soundfile.write(files[2], np.zeros(16_000), 16_000)
    shutil.copy(files[3], files[4])
    python, script, *arguments = shlex.split(paper.command(out.parent, "urbansound8k").replace("URBANSOUND8K", "IN"))
    told = cli(*[corpus if each == "IN" else each for each in arguments], "--workers", 0, "--json").stdout
    assert (python, script) == ("python", "cli.py") and paper.locate(out.parent, "urbansound8k")
    assert json.loads(told)["rejected"] == 0 and len(open_split(str(out / "dataset"), "train", (), 48_000)) == 2 * N


def test_classes_are_those_of_all_splits(model, tmp_path):
    for split, labels in (("test", ["dog", "siren"]), ("train", ["siren", "jazz", "blues"])):
        rows = pairs.tones(6)
        for i, row in enumerate(rows):
            row["labels"] = [labels[i % len(labels)]]
        pairs.write(tmp_path / "vggsound", rows, split)
    got = paper.measure(model, tmp_path, tmp_path / "out")["corpora"]["vggsound"]
    assert got["scores"]["chance"] == 1 / 4 and "4 of 309 classes: an easier task" in got["notes"]


def test_a_resample_of_as_many_clips_as_audioset_has_is_exact():
    rng = np.random.default_rng(0)
    relevant = rng.random(20_371) < 60 / 20_371
    counts, scores = bootstrap.draws(20_371, 100), rng.normal(size=20_371) + relevant
    drawn = np.repeat(np.arange(20_371), counts[:, 7].astype(int))
    expected = metrics.average_precision(scores[drawn], relevant[drawn])
    assert bootstrap.precisions(scores, relevant, counts)[7] == pytest.approx(expected, rel=1e-4)


def test_another_prompt_and_the_same_run_again_embed_no_audio(model, root, out, found, monkeypatch):
    before = (out / "paper.json").read_bytes(), (out / "paper.md").read_bytes()
    monkeypatch.setattr(CLAP, "embed_audio", None)
    ensemble = paper.measure(model, root, out, prompts="ensemble")["corpora"]
    assert (ensemble["esc50"]["prompts"], ensemble["gtzan"]["prompts"]) == (paper.SOUNDS, paper.SONGS)
    paper.measure(model, root, out, name="a|b")
    assert before == ((out / "paper.json").read_bytes(), (out / "paper.md").read_bytes())


def test_other_weights_other_audio_and_random_crops_are_embedded_anew(model, root, out, found):
    rows = open_split(str(root / "gtzan/dataset"), "all", (), 48_000)
    first, others = paper.Store(out / "embeddings", digest(model), "auto", 0), []
    for seed in (1, 2, 1):
        others.append(paper.Store(out / "random", digest(model), "random", seed).audio(model, rows, "gtzan"))
    assert (others[0] == others[2]).all() and (others[0] != others[1]).any()
    assert len(list((out / "random").iterdir())) == 2
    with torch.no_grad():
        model.audio_projection[0].bias += 1
        assert digest(model) != first.digest
        model.audio_projection[0].bias -= 1


def test_an_ensemble_is_the_normalised_mean_of_its_prompts(model):
    from clap.evaluate import embed_labels

    each = [embed_labels(model, ["dog", "jazz"], prompt) for prompt in paper.SOUNDS]
    mean = np.mean(each, axis=0)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(embed_labels(model, ["dog", "jazz"], paper.SOUNDS), expected, atol=1e-6)


def test_prompts_from_a_file_are_those_of_every_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("I hear {}.\n\n{}\n")
    assert paper.sentences(str(tmp_path / "a.txt"), "gtzan") == ("I hear {}.", "{}")
    (tmp_path / "a.txt").write_text("I hear it.\n")
    for given in (tmp_path / "a.txt", tmp_path / "none.txt"):
        with pytest.raises(ConfigError, match=r"needs \{\}|use paper, ensemble"):
            paper.sentences(str(given), "esc50")


def test_the_tables_show_published_figures_beside_ours_with_intervals(found, out):
    text = (out / "paper.md").read_text()
    (line,) = [line for line in text.splitlines() if "LAION-CLAP, K2C" in line]
    assert "91.0" in line and "77.0" in line and "46.2" in line and "table4" in line
    assert [c.strip() for c in next(x for x in text.splitlines() if x.startswith("| MMT")).split("|")[2:8]] == [
        "36.1", "72.0", "84.5", "39.6", "76.8", "86.7"
    ]  # fmt: skip
    assert "| **a\\|b** " in text and tables.within(
        found["corpora"]["esc50"]["scores"]["accuracy"], found["corpora"]["esc50"]["intervals"]["accuracy"]
    ) in text  # fmt: skip
    assert "- ESC-50: 2 of 50 classes: an easier task" in text and "mean of 10 folds" in text
    assert (out / "paper.png").read_bytes().startswith(b"\x89PNG")


def test_every_published_figure_has_a_source_and_the_columns_of_its_corpus():
    known = tables.published()
    for row in known["system"]:
        assert row["source"] in known["sources"] and set(row) - {"name", "source"} <= set(paper.CORPORA)
        for name in set(row) & set(paper.CORPORA):
            assert len(row[name]) == (6 if paper.CORPORA[name].score == "retrieval" else 1)
            assert all(np.isnan(v) or 0 < v < 100 for v in row[name])
    assert max(Counter((row["name"], row["source"]) for row in known["system"]).values()) == 1


def test_what_is_missing_is_listed_with_its_command_and_what_cannot_be_scored_with_its_reason(model, root, tmp_path):
    data = tmp_path / "data"
    pairs.write(data / "clotho", pairs.tones(3), split="train")
    rows = pairs.tones(4)
    pairs.write(data / "esc50/dataset", rows)
    for row in rows:
        row["fold"] = 11
    pairs.write(data / "urbansound8k", rows)
    (data / "gtzan").symlink_to(root / "gtzan")
    got = paper.measure(model, data, tmp_path / "out", obtain={"vggsound": "its list"})
    assert set(got["corpora"]) == {"gtzan"}
    assert (
        "no split 'test'" in got["skipped"]["clotho"]
        and "the official ones are 1 to 10" in got["skipped"]["urbansound8k"]
    )
    assert "knows too few words" in got["skipped"]["esc50"]
    build = f"python cli.py build-dataset vggsound --input VGGSOUND --out {data / 'vggsound'} {paper.ALL}"
    assert got["missing"]["vggsound"] == {"build": build, "obtain": "its list"}
    text = (tmp_path / "out/paper.md").read_text()
    assert build in text and "clotho was skipped" in text
    with pytest.raises(DataError, match="holds none of the corpora"):
        paper.measure(model, tmp_path / "none", tmp_path)
    with pytest.raises(ConfigError, match="truncation is"):
        paper.measure(model, data, tmp_path, truncation="middle")


def test_folds_that_are_not_here_are_told(model, tmp_path):
    rows = pairs.tones(6)
    for row in rows:
        row["labels"] = [WORDS[row["fold"] % 2]]
    pairs.write(tmp_path / "esc50", rows)
    got = paper.measure(model, tmp_path, tmp_path / "out")["corpora"]["esc50"]
    assert got["notes"] == ["6 of 2000 clips", "2 of 50 classes: an easier task", "without folds [5]"]
