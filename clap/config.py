"""Settings of a model and of a training run: frozen dataclasses, saved as JSON beside the weights."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints


class ClapError(Exception):
    """Training or using a model cannot go on; the message says what, where and what to do."""


class ConfigError(ClapError):
    """Settings that do not fit together, or that a saved run contradicts."""


PROMPT = "This is a sound of {}."  # of LAION-CLAP's zero-shot script
FUSIONS = ("none", "daf_1d", "aff_1d", "iaff_1d", "daf_2d", "aff_2d", "iaff_2d", "channel_map")
FILLINGS = ("repeatpad", "repeat", "pad")
TRUNCATIONS = ("auto", "centre", "fixed-thirds", "chunks", "random")  # of clips longer than the model's window
POOLINGS = ("auto", "pooler", "mean", "eos", "cls", "mean-all")
LOSSES = ("softmax", "mlp", "sigmoid", "triplet-max", "triplet-weighted", "nt-xent")


def setting(default: Any, help: str) -> Any:
    """A field whose default and help text are written once; the command line makes its flag from it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ModelConfig:
    """The two towers and the space they share. Defaults: HTSAT-tiny and RoBERTa-base, as LAION-CLAP."""

    sample_rate: int = setting(48000, "rate of the audio, Hz")
    clip_seconds: float = setting(10.0, "length of audio the model sees, s; shorter clips are filled")
    filling: str = setting("repeatpad", "how shorter clips are filled: repeatpad, repeat or pad")
    fusion: str = setting("none", "how longer clips are seen whole: none, daf, aff, iaff with _1d or _2d, channel_map")
    int16_quantize: bool = setting(False, "round audio towards zero to 16 bits, as LAION's checkpoints expect")
    n_fft: int = setting(1024, "Fourier transform, samples")
    win: int = setting(0, "window of the spectrum, samples (0: as long as the Fourier transform)")
    hop: int = setting(480, "step between spectra, samples")
    n_mels: int = setting(64, "mel bands")
    fmin: float = setting(50.0, "lowest mel band, Hz")
    fmax: float = setting(14000.0, "highest mel band, Hz")
    mel_scale: str = setting("slaney", "mel bands: slaney (LAION's plain models) or htk (its fused ones)")
    audio: str = setting("htsat", "audio tower: htsat or pann")
    htsat_spec: int = setting(256, "HTSAT: side of the square its mel is folded into")
    htsat_width: int = setting(96, "HTSAT: channels of the first stage; each stage doubles them")
    htsat_depths: tuple[int, ...] = setting((2, 2, 6, 2), "HTSAT: blocks of each stage")
    htsat_heads: tuple[int, ...] = setting((4, 8, 16, 32), "HTSAT: attention heads of each stage")
    htsat_window: int = setting(8, "HTSAT: side of an attention window, patches")
    htsat_drop_path: float = setting(0.1, "HTSAT: share of residual branches dropped in the last block")
    pann_widths: tuple[int, ...] = setting((64, 128, 256, 512, 1024, 2048), "PANN: channels of each block")
    pann_kernel: int = setting(3, "PANN: side of a convolution")
    pann_convs: int = setting(2, "PANN: convolutions in a block")
    pann_dropout: float = setting(0.2, "PANN: dropout after each block")
    pann_head_dropout: float = setting(0.5, "PANN: dropout around the last layer")
    time_mask: int = setting(64, "SpecAugment in training: widest of two masks, frames")
    freq_mask: int = setting(8, "SpecAugment in training: widest of two masks, mel bands")
    text: str = setting("FacebookAI/roberta-base", "text tower: a Hub id, a folder, or scratch (not pretrained)")
    text_pooling: str = setting("auto", "tokens to one vector: auto, pooler, mean (real tokens), eos, cls, mean-all")
    text_context: int = setting(77, "longest caption, tokens")
    text_arch: str = setting("roberta", "scratch tower: roberta or t5 (its encoder)")
    text_tokens: str = setting("words", "scratch tower: its tokenizer knows words or, as SentencePiece, unigram pieces")
    text_vocab: int = setting(8192, "scratch tower: most words or pieces, learned from the captions")
    text_width: int = setting(256, "scratch tower: width")
    text_layers: int = setting(4, "scratch tower: layers")
    text_heads: int = setting(4, "scratch tower: attention heads")
    dim: int = setting(512, "width of the space that audio and text share")
    activation: str = setting("relu", "between the two layers of a projection: relu or gelu")
    transforms: bool = setting(False, "build the second MLPs of the mlp loss, which turns this on")
    logit_bias: bool = setting(False, "build the bias of the sigmoid loss, which turns this on")

    @property
    def n_samples(self) -> int:
        """Amplitudes in the window the model sees."""
        return round(self.clip_seconds * self.sample_rate)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights of a run, given the data; defaults follow the paper's scripts."""

    model: ModelConfig = field(default_factory=ModelConfig)
    split: str = setting("train", "split to train on, or all")
    folds: tuple[int, ...] = setting((), "only clips of these cross-validation folds (empty: all)")
    validation_split: str = setting("validation", "split that chooses the best checkpoint, if the data have it")
    validation_folds: tuple[int, ...] = setting((), "only clips of these folds for validation (empty: all)")
    texts: str = setting("captions", "sentences to learn from: captions, generated (where there are some), both")
    word_dropout: float = setting(0.0, "chance of each word of a caption to be left out in training")
    roll: bool = setting(False, "rotate every training clip by a random amount of time")
    init: str = setting(
        "", "start from this model (run, checkpoint, LAION .pt, Hub id), its settings included (empty: random)"
    )
    init_audio: str = setting("", "start the audio tower from a file of HTS-AT, PANNs or LAION-CLAP (empty: random)")
    freeze: tuple[str, ...] = setting((), "parts that stay as they are, by name: text, audio, audio.layers.0, ...")
    freeze_norm: bool = setting(False, "batch norms keep their statistics and weights, as in evaluation")
    lora: int = setting(0, "rank of LoRA matrices that are trained in the towers' stead (0: off; needs the extra lora)")
    loss: str = setting("softmax", "softmax, mlp, sigmoid, triplet-max, triplet-weighted or nt-xent")
    targets: str = setting("multi-positive", "multi-positive (equal captions attract) or plain (only the own pair)")
    scales: str = setting("two", "softmax: two (one for each direction), or one for both as LAION-CLAP trains")
    kappa: float = setting(0.0, "softmax, mlp: weight pairs by their likeness to the batch, with this kappa (0: off)")
    margin: float = setting(0.2, "triplet losses: how much nearer a partner must be than a stranger")
    gather: str = setting("local", "rows that each of many processes compares: local (its own) or global (all)")
    epochs: int = setting(45, "passes over the data")
    batch_size: int = setting(96, "pairs in a step, of all processes: each is a negative of the others")
    micro_batch: int = setting(0, "pairs in memory at once: the same gradient, computed in turns (0: all of a process)")
    lr: float = setting(1e-4, "peak learning rate")
    lr_audio: float = setting(1.0, "the audio tower's, times lr")
    lr_text: float = setting(1.0, "the text tower's, times lr")
    warmup: int = setting(3200, "steps until the peak, then a cosine down to 0")
    weight_decay: float = setting(0.0, "AdamW's decay of matrices")
    beta1: float = setting(0.9, "AdamW: memory of the gradient")
    beta2: float = setting(0.999, "AdamW: memory of its square")
    eps: float = setting(1e-8, "AdamW: floor of the denominator")
    clip_norm: float = setting(1.0, "longest gradient; longer ones are shortened to it")
    ema: float = setting(0.0, "decay of a moving average of the weights, which is then evaluated and kept (0: off)")
    seed: int = setting(0, "seed of the weights, of the order of clips, of crops and captions")
    precision: str = setting("auto", "bf16, fp32, or auto: bf16 on a GPU, fp32 on a CPU")
    compile: bool = setting(False, "torch.compile the towers")
    recompute: bool = setting(False, "compute activations twice instead of keeping them: less memory, a third slower")
    cache: str = setting("none", "mel: keep log-mels of whole clips on disk and decode each clip once; or none")
    cache_dir: str = setting("", "folder of that cache (empty: ~/.cache/clapboard)")
    pool: int = setting(2048, "clips that are shuffled together, while compressed")
    log_every: int = setting(50, "steps between lines of metrics.jsonl")
    eval_every: int = setting(0, "steps between evaluations on the validation split (0: once an epoch)")
    save_every: int = setting(0, "steps between checkpoints (0: once an epoch)")
    keep: int = setting(2, "newest checkpoints kept")
    keep_best: int = setting(1, "best checkpoints kept")
    patience: int = setting(0, "stop after this many evaluations without a better one (0: never)")
    tensorboard: bool = setting(False, "write TensorBoard events to RUN/tensorboard (needs the extra track)")
    wandb: str = setting("", "log to this Weights & Biases project (needs the extra track)")
    workers: int = setting(4, "threads that decode audio")
    device: str = setting("auto", "cpu, cuda, cuda:1, or auto")


# May change when a run continues: they do not move its weights.
FREE = frozenset({"keep", "keep_best", "workers", "tensorboard", "wandb", "cache_dir", "device"})


def check_model(model: ModelConfig) -> None:
    """Raise ConfigError for a setting of a model outside its values, with the values it may take."""
    choices = {
        "audio": ("htsat", "pann"),
        "filling": FILLINGS,
        "fusion": FUSIONS,
        "mel_scale": ("slaney", "htk"),
        "text_pooling": POOLINGS,
        "text_arch": ("roberta", "t5"),
        "text_tokens": ("words", "unigram"),
        "activation": ("relu", "gelu"),
    }
    for name, allowed in choices.items():
        if getattr(model, name) not in allowed:
            raise ConfigError(f"{name} is {getattr(model, name)!r}: use {' or '.join(allowed)}")
    sizes = ("sample_rate", "n_fft", "hop", "n_mels", "dim", "text_vocab", "text_width", "text_layers", "text_heads")
    least = dict.fromkeys(sizes, 1) | {"text_context": 3}  # a word between the two marks of every caption
    for name, number in least.items():
        if getattr(model, name) < number:
            raise ConfigError(f"{name} is {getattr(model, name)}: it must be {number} or more")
    if not model.clip_seconds > 0:
        raise ConfigError(f"clip_seconds is {model.clip_seconds}: it must be more than 0")
    if model.text == "scratch" and model.text_width % model.text_heads:
        width, heads = model.text_width, model.text_heads
        raise ConfigError(f"text_width {width} is no multiple of text_heads {heads}: change one of them")


POSITIVE = "lr lr_audio lr_text clip_norm margin eps".split()
ONE_OR_MORE = "epochs batch_size pool log_every keep keep_best workers".split()
ZERO_OR_MORE = "seed kappa micro_batch patience lora weight_decay warmup eval_every save_every".split()
SHARES = "ema beta1 beta2 word_dropout".split()


def check_ranges(config: TrainConfig) -> None:
    """Raise ConfigError for a number outside its range."""
    for names, wrong, want in (
        (POSITIVE, lambda value: not value > 0, "more than 0"),
        (ONE_OR_MORE, lambda value: value < 1, "1 or more"),
        (ZERO_OR_MORE, lambda value: value < 0, "0 or more"),
        (SHARES, lambda value: not 0 <= value < 1, "0 or more and less than 1"),
    ):
        for name in names:
            if wrong(getattr(config, name)):
                raise ConfigError(f"{name} is {getattr(config, name)}: it must be {want}")


def check(config: TrainConfig) -> None:
    """Raise ConfigError for a setting outside its values, with the values it may take, or what can't be trained."""
    check_model(config.model)
    choices = {
        "texts": (config.texts, ("captions", "generated", "both")),
        "loss": (config.loss, LOSSES),
        "targets": (config.targets, ("multi-positive", "plain")),
        "scales": (config.scales, ("two", "one")),
        "gather": (config.gather, ("local", "global")),
        "precision": (config.precision, ("auto", "bf16", "fp32")),
        "cache": (config.cache, ("none", "mel")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r}: use {' or '.join(allowed)}")
    check_ranges(config)
    if config.kappa and config.loss not in ("softmax", "mlp"):
        raise ConfigError(f"kappa weights the softmax and mlp losses, not {config.loss}: leave it 0 or change --loss")
    if config.lora and config.ema:
        raise ConfigError("lora trains few weights, of which no average is kept: leave ema 0")
    if config.lora and not (config.init or (config.init_audio and config.model.text != "scratch")):
        raise ConfigError("lora leaves the towers as they are, which here are random: give --init")
    if "audio" in config.freeze and not (config.init or config.init_audio):
        raise ConfigError("freeze audio would leave the audio tower random: drop it, or give --init or --init-audio")
    if "text" in config.freeze and config.model.text == "scratch" and not config.init:
        raise ConfigError("freeze text would leave a text tower from scratch random: drop it, or give a trained --text")
    apart = config.folds and config.validation_folds and not set(config.folds) & set(config.validation_folds)
    asked = config.validation_folds or config.validation_split != TrainConfig.validation_split
    shared = config.validation_split in (config.split, "all") or (config.split == "all" and asked)
    if shared and not apart:
        raise ConfigError(
            f"split {config.split!r} would be trained on and validated on: give --folds and "
            "--validation-folds that have none in common, or another --validation-split"
        )


def for_loss(config: TrainConfig) -> ModelConfig:
    """The model that `config.loss` can train: with the heads that it needs."""
    model = config.model
    return replace(
        model,
        transforms=model.transforms or config.loss == "mlp",
        logit_bias=model.logit_bias or config.loss == "sigmoid",
    )


def to_dict(config: ModelConfig | TrainConfig) -> dict[str, Any]:
    """Plain values, as JSON gives them back."""
    return json.loads(json.dumps(asdict(config)))


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """The config of class `kind` from `to_dict`'s values; ConfigError for a setting this version lacks."""
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise ConfigError(f"unknown settings {sorted(unknown)}: written by another version of clapboard?")
    hints = get_type_hints(kind)
    typed = {
        name: from_dict(ModelConfig, v) if hints[name] is ModelConfig else tuple(v) if isinstance(v, list) else v
        for name, v in values.items()
    }
    return kind(**typed)


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a JSON file; ConfigError if it is missing, damaged or no table of settings."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): copy or write it again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}, not settings by name: copy or write it again")
    return found


def read(kind: type, path: Path) -> Any:
    """The config saved at `path`."""
    return from_dict(kind, read_json(path))


_BASE = {"htsat_depths": (2, 2, 12, 2), "htsat_heads": (4, 8, 16, 32)}

# LAION-CLAP's audio models by their names there, as settings that differ from ModelConfig's defaults.
AUDIO_MODELS: dict[str, dict[str, Any]] = {
    "HTSAT-tiny": {"audio": "htsat"},
    "HTSAT-tiny-win-1536": {"audio": "htsat", "n_fft": 1536},
    "HTSAT-base": {"audio": "htsat", "htsat_width": 128, **_BASE},
    "HTSAT-large": {"audio": "htsat", "htsat_width": 256, **_BASE},
    "PANN-14": {"audio": "pann"},
    "PANN-14-fmax-18k": {"audio": "pann", "fmax": 18000.0},
    "PANN-14-win-1536": {"audio": "pann", "n_fft": 1536},
    "PANN-14-fmax-8k-20s": {"audio": "pann", "fmax": 8000.0, "hop": 360, "clip_seconds": 20.0},
    "PANN-10": {"audio": "pann", "pann_widths": (64, 128, 256, 512, 1024)},
    "PANN-6": {"audio": "pann", "pann_widths": (64, 128, 256, 512), "pann_kernel": 5, "pann_convs": 1},
}

# For a few hundred clips on a CPU: coarser mels, little dropout and narrow masks, or a small tower underfits.
_SMALL = ModelConfig(
    clip_seconds=5.0,
    n_fft=2048,
    hop=960,
    time_mask=16,
    audio="pann",
    pann_widths=(16, 32, 64, 128),
    pann_dropout=0.0,
    pann_head_dropout=0.1,
    htsat_spec=128,
    htsat_width=32,
    htsat_depths=(2, 2, 2),
    htsat_heads=(2, 4, 8),
    text="scratch",
    text_pooling="mean",
    text_vocab=4096,
    text_width=128,
    text_layers=2,
    text_heads=4,
    dim=128,
)
_TINY = TrainConfig(
    model=_SMALL,
    word_dropout=0.25,
    roll=True,
    epochs=50,
    batch_size=16,
    lr=1e-3,
    warmup=20,
    weight_decay=0.01,
    log_every=15,
)
_PAPER = TrainConfig(batch_size=2304)  # 24 GPUs x 96 in the paper's scripts

PRESETS: dict[str, TrainConfig] = {
    "tiny": _TINY,
    "tiny-htsat": replace(_TINY, model=replace(_SMALL, audio="htsat"), epochs=60),
    "paper-htsat-roberta": _PAPER,
    # For --init: a low rate keeps what was learned, and the statistics of few new clips are noisy. 1e-5 is between what
    # others fine-tune CLAP with; with --lora, whose matrices start at 0, take ten times as much.
    "finetune": TrainConfig(
        epochs=10, batch_size=64, micro_batch=16, lr=1e-5, warmup=20, freeze_norm=True, patience=3, log_every=10
    ),
    "paper-fusion": replace(_PAPER, model=replace(_PAPER.model, fusion="aff_2d", mel_scale="htk"), cache="mel"),
    "paper-pann": replace(_PAPER, model=replace(_PAPER.model, audio="pann"), warmup=500),
}
