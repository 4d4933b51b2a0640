"""Train a captioner, a model that writes sentences from keywords: a small T5 from scratch, or one that is fine-tuned.

It learns from real captions of sounds (pipelines.lessons). The same call continues a run that was stopped; when it is
done, OUT is a folder that transformers loads and that the stage `caption` takes as its captioner:

    OUT/training/settings.json   what was asked for
    OUT/training/checkpoint.pt   weights, optimiser and random state; gone at the end
    OUT/metrics.jsonl            a line for every line of the log
    OUT/model.safetensors, tokenizer.json, captioner.json (its prompt) ... and, last of all, config.json
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.captioner import load
from pipelines.disk import BuildError, atomic, lock, remove, sync, write_text
from pipelines.lessons import Lesson, batches, read_lessons
from pipelines.setting import setting, settings
from pipelines.text import clean

SAMPLES = 6  # captions whose keywords are shown with what the model makes of them
LONGEST = 96  # tokens of a caption that are learnt, and of a prompt that are read


@dataclass(frozen=True)
class Training:
    """How a captioner is trained. The defaults are for one from scratch on the 50,000 captions of AudioCaps."""

    epochs: int = setting(10, "passes over the captions")
    batch_size: int = setting(64, "captions in a step")
    lr: float = setting(1e-2, "peak learning rate, relative to the size of weights (Adafactor); 1e-3 to fine-tune")
    warmup: int = setting(300, "steps up to the peak; then a cosine to 0")
    drop: float = setting(0.1, "share of captions with a keyword left out: the model learns to add words of its own")
    in_order: float = setting(0.1, "share of captions whose keywords are not shuffled")
    made_up: float = setting(0.3, "share of captions with a word made up, to learn to copy words never read")
    prompt: str = setting(" ", "what stands between two keywords")
    pieces: int = setting(2500, "word pieces of the tokenizer (from scratch)")
    width: int = setting(192, "width of the model (from scratch)")
    heads: int = setting(3, "attention heads (from scratch)")
    layers: int = setting(3, "layers that read keywords, and as many that write (from scratch)")
    dropout: float = setting(0.05, "dropout (from scratch)")
    precision: str = setting("fp32", "fp32, or bf16 in matrix products: faster where the machine has it")
    device: str = setting("auto", "cpu, cuda, or auto")
    seed: int = setting(0, "of weights, order and dropout")
    log_every: int = setting(50, "steps between lines of the log", manner=True)
    sample_every: int = setting(500, "steps between printed samples", manner=True)
    save_every: int = setting(500, "steps between checkpoints", manner=True)


@dataclass
class State:
    """All that moves while training."""

    model: Any
    tokenizer: Any
    optimizer: Any
    step: int = 0
    recent: list[float] = field(default_factory=list)  # losses since the last line of the log


def train_captioner(
    captions: Sequence[str | Path], out: str | Path, init: str = "", config: Training | None = None
) -> dict[str, float]:
    """Train on CSV files and datasets into the folder `out`; return the last line of its log.

    `init` is a folder or Hub id of a seq2seq model to fine-tune; "" makes a T5 and its tokenizer from scratch. On a CPU
    a run that was killed and called again ends with the same weights as another. Raises BuildError for captions,
    settings or a model that cannot be trained.
    """
    config, out = config or Training(), Path(out)
    check(config)
    lessons = read_lessons(captions)
    with lock(out / "training"):
        remember(out, lessons, init, config)
        if not (out / "config.json").exists():
            loop(start(out, lessons, init, config), lessons, out, config)
    line: dict[str, float] = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return line


def check(config: Training) -> None:
    """Raise BuildError for settings that cannot be."""
    sizes = ("epochs", "batch_size", "lr", "pieces", "width", "heads", "layers")
    for name in (*sizes, "log_every", "sample_every", "save_every"):
        if getattr(config, name) <= 0:
            raise BuildError(f"--{name.replace('_', '-')} is {getattr(config, name)}: give more than 0")
    for name in ("drop", "in_order", "made_up", "dropout"):
        if not 0 <= getattr(config, name) <= 1:
            raise BuildError(f"--{name.replace('_', '-')} is {getattr(config, name)}: give a share from 0 to 1")
    if config.precision not in ("fp32", "bf16"):
        raise BuildError(f"--precision is {config.precision!r}: give fp32 or bf16")
    if config.width % config.heads:
        raise BuildError(f"--width {config.width} cannot be shared by {config.heads} heads: give a multiple of that")


def remember(out: Path, lessons: list[Lesson], init: str, config: Training) -> None:
    """Write OUT/training/settings.json, or, where it is, raise BuildError unless it says the same."""
    path = out / "training" / "settings.json"
    digest = hashlib.sha256(json.dumps(lessons).encode()).hexdigest()
    now = {"init": init, "captions": len(lessons), "sha256": digest} | settings(config)
    if not path.exists():
        if (out / "config.json").exists():
            raise BuildError(f"{out} holds a model that was not trained here: give another --out")
        return write_text(path, json.dumps(now, indent=2) + "\n")
    old = json.loads(path.read_text(encoding="utf-8"))
    if changed := [f"{key} was {old.get(key)!r}, is now {now[key]!r}" for key in now if old.get(key) != now[key]]:
        raise BuildError(f"{out} holds another training ({'; '.join(changed)}): repeat that one, or give another --out")
    return None


def start(out: Path, lessons: list[Lesson], init: str, config: Training) -> State:
    """The state of the checkpoint, torch's random state set to it too, or that of the first step."""
    import torch

    checkpoint, log = out / "training" / "checkpoint.pt", out / "metrics.jsonl"
    torch.manual_seed(config.seed)
    model, tokenizer = load(init) if init else scratch(lessons, config)
    model.to(device_of(config.device))
    # T5's first weights differ in size a hundredfold, and so do Adafactor's steps; with AdamW's it learns far slower
    state = State(model, tokenizer, torch.optim.Adafactor(model.parameters(), config.lr))
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        state.step, state.recent = saved["step"], saved["recent"]
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    write_text(log, "".join(line for line in lines if json.loads(line)["step"] <= state.step))
    return state


def scratch(lessons: list[Lesson], config: Training) -> tuple[Any, Any]:
    """A T5 with random weights, and its tokenizer. Words have one vector when read and written: copying is easy."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = train_tokenizer(lessons, config.pieces)
    sizes = {"d_model": config.width, "d_kv": config.width // config.heads, "d_ff": 4 * config.width}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
           "decoder_start_token_id": tokenizer.pad_token_id}  # fmt: skip
    shape: dict[str, Any] = sizes | ids | {"tie_word_embeddings": True, "vocab_size": len(tokenizer)}
    t5 = T5Config(**shape, num_layers=config.layers, num_heads=config.heads, dropout_rate=config.dropout)
    return T5ForConditionalGeneration(t5), tokenizer


def train_tokenizer(lessons: list[Lesson], pieces: int) -> Any:
    """A lower-casing BPE tokenizer of captions and keywords with T5's special tokens; it ends each text with </s>.

    Not T5's unigram pieces: the trainer of those finds others each time, and a third more of them per caption.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    bpe.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=pieces, special_tokens=list(special.values()), show_progress=False)
    bpe.train_from_iterator((text for keywords, caption in lessons for text in (" ".join(keywords), caption)), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)


def device_of(name: str) -> str:
    """The device of that name; auto is a GPU if there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise BuildError(f"--device is {name!r}, and torch sees none such: give cpu, cuda or auto")
    return name


def loop(state: State, lessons: list[Lesson], out: Path, config: Training) -> None:
    """Every step from `state` to the end, with its log, samples and checkpoints; then the model itself."""
    per_epoch = math.ceil(len(lessons) / config.batch_size)
    total, began, begun = config.epochs * per_epoch, time.monotonic(), state.step
    while state.step < total:
        shares = (config.drop, config.in_order, config.made_up)
        epoch = batches(lessons, (config.seed, state.step // per_epoch), config.batch_size, *shares)
        for batch in epoch[state.step % per_epoch :]:
            lr = learning_rate(state.step, total, config.warmup, config.lr)
            state.recent.append(update(state, batch, lr, config))
            state.step += 1
            last = state.step == total
            if state.step % config.log_every == 0 or last:
                speed = (state.step - begun) / (time.monotonic() - began)  # steps per s since this call
                log(state, out, lr, state.step / per_epoch, speed * config.batch_size, (total - state.step) / speed)
            if state.step % config.sample_every == 0 or last:
                show(state, lessons[:SAMPLES], config.prompt)
            if state.step % config.save_every == 0:
                save(state, out)
    finish(state, out, config.prompt)


def update(state: State, batch: list[Lesson], lr: float, config: Training) -> float:
    """One step of the optimiser; returns the loss in nats per token."""
    import torch

    model, tokenizer = state.model.train(), state.tokenizer
    prompts, texts = [config.prompt.join(keywords) for keywords, _ in batch], [caption for _, caption in batch]
    tokens = tokenizer(prompts, text_target=texts, padding=True, truncation=True, max_length=LONGEST,
                       return_tensors="pt").to(model.device)  # fmt: skip
    labels = tokens["labels"].masked_fill(tokens["labels"] == tokenizer.pad_token_id, -100)  # (batch, tokens)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss = model(tokens["input_ids"], attention_mask=tokens["attention_mask"], labels=labels).loss
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad()
    loss.backward()
    if not math.isfinite(loss.item()):
        raise BuildError(f"no finite loss at step {state.step}: give another --out and a lower --lr or another --init")
    state.optimizer.step()
    return float(loss.item())


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear up to `peak` over `warmup` steps, then a cosine down to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def log(state: State, out: Path, lr: float, epoch: float, speed: float, left: float) -> None:
    """Add a line to the log and print it; `speed` in captions per second, `left` in seconds."""
    loss = sum(state.recent) / len(state.recent)
    state.recent.clear()
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({"step": state.step, "epoch": epoch, "loss": loss, "lr": lr}) + "\n")
    tell(f"step {state.step:>6,}  epoch {epoch:5.2f}  loss {loss:.3f}  lr {lr:.1e}  {speed:,.0f} captions/s"
         f"  {left / 60:.0f} min left")  # fmt: skip


def show(state: State, lessons: list[Lesson], prompt: str) -> None:
    """Print what the model writes, each time the likeliest word, from the keywords of a few captions."""
    import torch

    model, tokenizer = state.model.eval(), state.tokenizer
    tokens = tokenizer([prompt.join(keywords) for keywords, _ in lessons], padding=True, return_tensors="pt")
    tokens = {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        written = model.generate(**tokens, max_new_tokens=LONGEST, num_beams=1, do_sample=False)
    for (keywords, _), text in zip(lessons, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
        tell(f"    {', '.join(keywords)} > {text}")


def tell(text: str) -> None:
    """Print a line on standard error."""
    from rich.console import Console

    Console(stderr=True).print(clean(text), markup=False, highlight=False, soft_wrap=True)


def save(state: State, out: Path) -> None:
    """Replace the checkpoint."""
    import torch

    weights = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}
    rest = {"random": torch.get_rng_state(), "step": state.step, "recent": state.recent}
    with atomic(out / "training" / "checkpoint.pt") as temporary:
        torch.save(weights | rest, temporary)


def finish(state: State, out: Path, prompt: str) -> None:
    """Put the model into OUT file by file, config.json last: a folder without it holds none. Then no checkpoint."""
    made = out / "training" / "model"
    state.model.save_pretrained(made)
    state.tokenizer.save_pretrained(made)
    write_text(made / "captioner.json", json.dumps({"prompt": prompt}) + "\n")
    for path in sorted(made.iterdir(), key=lambda path: path.name == "config.json"):
        sync(path)
        path.replace(out / path.name)
        sync(out)
    remove(made)
    (out / "training" / "checkpoint.pt").unlink(missing_ok=True)
