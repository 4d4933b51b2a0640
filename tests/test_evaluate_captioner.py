"""The scores of captioners on captions that people wrote."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioners import tiny_captioner

from pipelines.captioner import Captioner
from pipelines.disk import BuildError
from pipelines.evaluate_captioner import (
    bleu,
    chosen,
    compare,
    distinct,
    evaluate,
    likeliest,
    references,
    rouge,
    template,
)

CLIPS = [
    ["A dog barks loudly.", "Loud barking of a dog."],
    ["Rain falls on a roof.", "It rains."],
    ["A siren wails at night."],
]


def firsts(sets):
    """A captioner that writes what the keywords came from."""
    return [several[0] for several in CLIPS]


def test_the_captions_themselves_score_best():
    scores = evaluate({"human": firsts}, CLIPS)["human"]
    assert scores["coverage"] == scores["complete"] == scores["rouge_l"] == 1
    assert scores["invention"] == 0 and scores["bleu"] == pytest.approx(1) and scores["n"] == 3


def test_a_captioner_that_says_nothing_scores_nothing():
    scores = evaluate({"mute": lambda sets: [""] * len(sets)}, CLIPS)["mute"]
    assert {scores[name] for name in scores if name not in ("n", "captions_per_second")} == {0}


def test_the_template_says_all_keywords_and_nothing_else_on_audiocaps(shared):
    captions = references(shared / "data" / "audiocaps" / "val.csv")
    scores = evaluate({"template": template}, captions)["template"]
    assert (scores["coverage"], scores["complete"], scores["invention"], scores["n"]) == (1, 1, 0, 495)
    assert scores["rouge_l"] == pytest.approx(0.355, abs=0.001)
    assert scores["captions_per_second"] > 1_000


def test_half_of_the_keywords_and_a_stranger_are_told():
    scores = evaluate({"some": lambda sets: ["A dog.", "A siren.", "A siren wails at night."]}, CLIPS)["some"]
    assert scores["coverage"] == pytest.approx((1 / 3 + 0 + 1) / 3)  # dog of dog, bark, loudly
    assert scores["invention"] == pytest.approx((0 + 1 + 0) / 3)
    assert scores["complete"] == pytest.approx(1 / 3)


def test_keywords_may_be_given_and_clips_without_any_are_left_out():
    seen = []
    evaluate({"spy": lambda sets: seen.extend(sets) or template(sets)}, CLIPS, [("owl",), (), ("wind", "door")])
    assert seen == [("owl",), ("wind", "door")]
    with pytest.raises(BuildError, match="no caption to evaluate with"):
        evaluate({"template": template}, [["It is."], []])


def test_the_nearest_caption_of_a_clip_counts():
    assert rouge(["It rains."], [CLIPS[1]]) == 1
    assert rouge(["It rains."], [CLIPS[1][:1]]) < 1
    assert bleu(["a b c d e", "a b c d f"], [["a b c d e"], ["a b c d f"]]) == pytest.approx(1)


def test_distinct_counts_different_runs_of_words():
    assert distinct(["a dog", "A dog."], 1) == 1 / 2
    assert distinct(["a dog", "a cat"], 2) == 1
    assert distinct(["dog"], 2) == 0


class Several:
    """Writes three sentences for each set of keywords, the likeliest first; none for a set of one."""

    def generate(self, sets):
        texts = [("A cat.", -0.1), (f"A {sets[0][0]}.", -0.2), (f"A {' and a '.join(sets[0])}.", -0.3)]
        return [texts if len(each) > 1 else [] for each in sets]


def test_the_truest_candidate_is_chosen_and_the_likeliest_is_the_first():
    sets = [("dog", "bell"), ("rain",)]
    assert chosen(Several())(sets) == ["A dog and a bell.", ""]
    assert likeliest(Several())(sets) == ["A cat.", ""]


def test_models_are_compared_with_the_template_by_what_they_write(tmp_path):
    scores = compare({"model": Captioner(str(tiny_captioner(tmp_path)))}, CLIPS)
    assert list(scores) == ["template", "model", "model, chosen"]
    assert scores["model"]["coverage"] <= scores["model, chosen"]["coverage"] < scores["template"]["coverage"] == 1
    assert scores["model"]["captions_per_second"] == scores["model, chosen"]["captions_per_second"] > 0


@pytest.mark.parametrize(
    ("text", "clips"),
    [
        ("caption\nRain.\nRain.\n", [["Rain."], ["Rain."]]),
        (
            "audiocap_id,youtube_id,start_time,caption\n1,a,0,One.\n2,b,0,Two.\n3,a,0,Three.\n4,a,10,Four.\n",
            [["One.", "Three."], ["Two."], ["Four."]],
        ),
        ("file_name,caption_1,caption_2\na.wav,One.,Two.\nb.wav,Three.,\n", [["One.", "Two."], ["Three."]]),
        ("file_name,caption,caption_language\na.wav,One.,English\n", [["One."]]),
        ("id,caption\na,One.\na,Two.\nb,\n", [["One.", "Two."]]),
    ],
)
def test_the_captions_of_a_clip_in_a_table_come_together(tmp_path, text, clips):
    (tmp_path / "captions.csv").write_text(text)
    assert references(tmp_path / "captions.csv") == clips
    assert references(tmp_path / "captions.csv", limit=1) == clips[:1]


def test_a_table_without_captions_is_refused(tmp_path):
    for text, said in (("id,text\na,Rain.\n", "no column caption"), ("caption\n", "no caption in")):
        (tmp_path / "captions.csv").write_text(text)
        with pytest.raises(BuildError, match=said):
            references(tmp_path / "captions.csv")


def test_a_dataset_gives_the_captions_of_a_split(tmp_path):
    (tmp_path / "dataset" / "data").mkdir(parents=True)
    for split, captions in (("train", [["One."]]), ("test", [["Two.", "Three."], ["Four."]])):
        table = pa.table({"id": list(map(str, captions)), "captions": captions})
        pq.write_table(table, tmp_path / "dataset" / "data" / f"{split}-00000-of-00001.parquet")
    assert references(tmp_path) == references(tmp_path / "dataset") == [["Two.", "Three."], ["Four."]]
    assert references(tmp_path, "all", limit=2) == [["Two.", "Three."], ["Four."]]
    assert references(tmp_path, "train") == [["One."]]
    with pytest.raises(BuildError, match="split validation"):
        references(tmp_path, "validation")


def test_a_dataset_gives_no_sentence_of_the_template_and_no_other_language(tmp_path):
    (tmp_path / "dataset" / "data").mkdir(parents=True)
    rows = [
        {"captions": ["The sound of dog.", "A dog."], "labels": ["dog"], "tags": ["rain"], "language": "en"},
        {"captions": ["The sound of rain."], "labels": [], "tags": ["rain"], "language": ""},
        {"captions": ["Ein Hund bellt."], "labels": [], "tags": [], "language": "de"},
        {"captions": ["The sound of wind."], "labels": [], "tags": [], "language": ""},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "dataset" / "data" / "test-00000-of-00001.parquet")
    assert references(tmp_path) == [["A dog."], ["The sound of wind."]]
