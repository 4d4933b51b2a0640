"""Captions per CPU second on one thread: LAION's way, ours, and CTranslate2, at equal tokens and beams.

    python -m benchmarks.caption --size small --captions 128
    python -m benchmarks.caption --model runs/captioner/model --keywords ../shared/data/audiocaps/val.csv

With --size the weights are random and every sentence has 20 tokens, so that all do the same work. With --model the
weights and keywords are real, sentences end where they end, and the faithfulness of what each way writes is shown too.
LAION's way is keytotext's: one by one, fp32, 4 beams. CTranslate2 (pip install ctranslate2)
is left out if not there.
"""

import argparse
import csv
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import torch

from pipelines.beams import Decoding
from pipelines.captioner import BATCH, Captioner
from pipelines.faithfulness import choose
from pipelines.keywords import extract

SIZES = {  # T5's, as published
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
}
TOKENS = 20
TABLE = 633_526  # clips of LAION-Audio-630K

Sets = list[tuple[str, ...]]
Found = list[list[tuple[str, float]]]


def random_model(size: str, folder: Path) -> Path:
    """A T5 of that size with random weights, which ends no sentence, and a tokenizer whose pieces are words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    pieces = [(each, 0.0) for each in special.values()] + [(f"\u2581w{i}", -1.0) for i in range(32_097)]
    words = Tokenizer(models.Unigram(pieces, unk_id=2))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    config = T5Config(vocab_size=32_128, decoder_start_token_id=0, tie_word_embeddings=False, **SIZES[size])
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight[1] = 0
    model.save_pretrained(folder)
    return folder


def random_sets(count: int) -> Sets:
    """Sets of 2 to 8 keywords."""
    pick = random.Random(0)
    return [tuple(f"w{pick.randrange(32_000)}" for _ in range(pick.randint(2, 8))) for _ in range(count)]


def real_sets(path: Path, count: int) -> Sets:
    """The keywords of captions in a CSV, each set once."""
    with path.open(newline="", encoding="utf-8") as handle:
        found = dict.fromkeys(extract(row["caption"]) for row in csv.DictReader(handle))
    return random.Random(0).sample([each for each in found if each], count)


def one_by_one(captioner: Captioner, sets: Sets, length: dict[str, int]) -> Found:
    """As keytotext does it."""
    found = []
    for keywords in sets:
        ids = torch.tensor([captioner.encode(keywords)], device=captioner.device)
        with torch.inference_mode():
            said = captioner.model.generate(
                input_ids=ids, num_beams=4, num_return_sequences=4, length_penalty=1.5, no_repeat_ngram_size=3,
                early_stopping=True, do_sample=False, **length,
            )  # fmt: skip
        found.append([(text, 0.0) for text in captioner.tokenizer.batch_decode(said, skip_special_tokens=True)])
    return found


def ctranslate(folder: Path, kind: str) -> Callable[[Captioner, Sets, dict[str, int]], Found] | None:
    """The same by CTranslate2 in batches of as many; None where it is not installed."""
    try:
        import ctranslate2
    except ImportError:
        return None
    out = folder / "ctranslate2"
    if not out.exists():
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(out))
    translator = ctranslate2.Translator(str(out), compute_type=kind, inter_threads=1, intra_threads=1)

    def write(captioner: Captioner, sets: Sets, length: dict[str, int]) -> Found:
        tokenizer = captioner.tokenizer
        prompts = [tokenizer.convert_ids_to_tokens(captioner.encode(each)) for each in sets]
        results = translator.translate_batch(
            prompts, max_batch_size=BATCH["cpu"], beam_size=4, num_hypotheses=4, length_penalty=1.5,
            no_repeat_ngram_size=3, max_decoding_length=length["max_new_tokens"],
            min_decoding_length=length.get("min_new_tokens", 1),
        )  # fmt: skip
        return [[(tokenizer.decode(tokenizer.convert_tokens_to_ids(each), skip_special_tokens=True), 0.0)
                 for each in result.hypotheses] for result in results]  # fmt: skip

    return write


def measure(name: str, write: Callable[[], Found], sets: Sets, than: float | None, real: bool) -> float:
    """Print captions per CPU second, how many times as many as LAION's way, and what that means for its dataset."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = write()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    speed = len(sets) / cpu
    line = f"{name:23} {speed:8.2f} captions/CPU s  {len(sets) / wall:8.2f} captions/s  "
    line += f"{speed / than:5.2f} x  " if than else "          "
    line += f"{TABLE / speed / 3600 / 2:8.1f} h for {TABLE:,} on 2 cores"
    if real:
        scores = [choose(each, keywords)[1] for each, keywords in zip(found, sets, strict=True)]
        share = [sum(each[i] for each in scores) / len(scores) for i in (0, 1)]
        line += f"  coverage {share[0]:.3f}, invention {share[1]:.3f}"
    print(line, flush=True)
    return speed


def compare(folder: Path, sets: Sets, few: int, real: bool) -> None:
    """Measure each way on the same sets; the slow one on the first `few`."""
    captioner = Captioner(str(folder), decoding=Decoding(most_tokens=48 if real else TOKENS, precision="fp32"))
    length = {"max_new_tokens": 48} if real else {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    one_by_one(captioner, sets[:1], length)  # so that nothing is loaded later
    slow = measure("one by one, torch fp32", lambda: one_by_one(captioner, sets[:few], length), sets[:few], None, real)
    for precision in ("fp32", "bf16"):
        ours = Captioner(str(folder), decoding=replace(captioner.decoding, precision=precision))
        ours.generate(sets[:1])
        ours.known.clear()
        measure(f"ours, torch {precision}", lambda ours=ours: ours.generate(sets), sets, slow, real)
    for kind in ("float32", "int8"):
        if write := ctranslate(folder, kind):
            write(captioner, sets[:1], length)
            measure(f"CTranslate2, {kind}", lambda write=write: write(captioner, sets, length), sets, slow, real)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small", help="of T5 with random weights")
    parser.add_argument("--model", type=Path, help="folder of a trained captioner, instead")
    parser.add_argument("--keywords", type=Path, help="CSV with a column caption, for --model")
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--few", type=int, default=16, help="captions for the slow way")
    given: Any = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if given.model:
            folder = copytree(given.model, Path(scratch) / "model")  # CTranslate2's version goes beside it
            compare(folder, real_sets(given.keywords, given.captions), given.few, real=True)
        else:
            compare(random_model(given.size, Path(scratch)), random_sets(given.captions), given.few, real=False)


if __name__ == "__main__":
    main()
