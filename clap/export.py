"""transformers' ClapModel folders, out and in: the same weights under its names, and a front end that agrees.

transformers knows HTSAT, plain or with aff_2d fusion, and RoBERTa; what it has no place for is refused on the way
out, but for the second MLPs of the mlp loss, which embeddings don't need. Ours reads its own folders by themselves.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clap import checkpoint
from clap.config import ConfigError, ModelConfig, read_json
from clap.convert import UNUSED, load, load_tokenizer, read_safetensors, read_tensors
from clap.model import CLAP, UNFIT, ModelError

RENAMES = (  # ours, transformers'; backwards in the opposite order; qkv is split in three besides
    ("text.encoder.", "text_model."),
    ("audio.", "audio_model.audio_encoder."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".bn0.", ".batch_norm."),
    ("_projection.0.", "_projection.linear1."),
    ("_projection.2.", "_projection.linear2."),
    ("log_scale_", "logit_scale_"),
    (".attn.relative_position_bias_table", ".attention.self.relative_position_bias_table"),
    (".attn.qkv.", ".attention.self.qkv."),
    (".attn.proj.", ".attention.output.dense."),
)
TEXT = (  # fields that RobertaConfig and ClapTextConfig share
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
FIXED = {  # what transformers leaves open in an audio tower, and we do not
    "patch_size": 4, "patch_stride": [4, 4], "mlp_ratio": 4.0, "qkv_bias": True, "enable_patch_layer_norm": True,
    "hidden_act": "gelu", "aff_block_r": 4, "layer_norm_eps": 1e-5, "patch_embed_input_channels": 1,
}  # fmt: skip


KEPT = ("int16_quantize", "text_context", "time_mask", "freq_mask")  # settings of ours that only we read there


def to_transformers(model: CLAP, folder: str | Path) -> None:
    """Write a folder for transformers' ClapModel and ClapProcessor; `from_transformers` gives the same model back.

    Its own extractor takes a random crop of long clips, and a fused ClapModel takes a random short clip for a longer
    one if a batch has no other: embeddings agree where it is told which clips are longer.
    """
    from transformers import ClapModel, ClapProcessor

    refuse(model)
    config = clap_config(model)
    theirs = ClapModel(config)
    found = {their_name(name): tensor for name, tensor in model.state_dict().items() if "_transform." not in name}
    load(theirs, split_qkv(found), "the model", unsaved(theirs))

    def fill(folder: Path) -> None:
        theirs.save_pretrained(folder)
        ClapProcessor(extractor(model.config), model.tokenizer).save_pretrained(folder)

    checkpoint.place(Path(folder), fill)


def from_transformers(folder: str | Path, tokenizer: str | Path | None = None) -> CLAP:
    """The model of a transformers CLAP folder, in evaluation mode.

    Its front end is the extractor's. Where that is missing, it is LAION's of plain or of fused models, for the
    extractor's own defaults would hear bands that no published model was trained on.
    """
    from transformers import ClapConfig, RobertaModel

    folder = Path(folder)
    try:
        config = ClapConfig.from_pretrained(folder, local_files_only=True)
        encoder = RobertaModel(text_config(config.text_config))
        model = CLAP(our_config(config, folder), encoder, None)
    except UNFIT as error:
        lacks = "lacks" if isinstance(error, KeyError) else "do not make a model:"
        raise ModelError(f"{folder} is damaged: its settings (*.json) {lacks} {error}. Copy it again") from error
    model.tokenizer = load_tokenizer(tokenizer or folder, encoder.config.vocab_size)
    found = {our_name(name): tensor for name, tensor in join_qkv(weights(folder)).items() if not UNUSED.search(name)}
    load(model, found, folder)
    return model.eval()


def is_transformers(folder: Path) -> bool:
    """Whether a folder holds transformers' ClapModel, not ours."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") == "clap"


def their_name(name: str) -> str:
    """One of our names as transformers has it."""
    for ours, theirs in RENAMES:
        name = swap(name, ours, theirs)
    return name


def our_name(name: str) -> str:
    """One of transformers' names as we have it."""
    if name.startswith("text_model."):
        return swap(name, "text_model.", "text.encoder.")
    for ours, theirs in reversed(RENAMES):
        name = swap(name, theirs, ours)
    return name


def swap(name: str, old: str, new: str) -> str:
    """Replace `old` by `new`: at the start, if it does not begin with a dot or an underscore, else anywhere."""
    if old[0] in "._":
        return name.replace(old, new)
    return new + name.removeprefix(old) if name.startswith(old) else name


def split_qkv(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor each for query, key and value."""
    out = {name: tensor for name, tensor in found.items() if ".qkv." not in name}
    for name, tensor in found.items():
        if ".qkv." in name:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            out |= {name.replace("qkv", part): value.clone() for part, value in parts}
    return out


def join_qkv(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The audio tower's query, key and value as one tensor."""
    out = dict(found)
    for name in [name for name in found if re.match(r"audio_model\..*\.self\.query\.", name)]:
        names = [name.replace("query", part) for part in ("query", "key", "value")]
        shapes = [tuple(out[part].shape) if part in out else () for part in names]
        if shapes[0] and shapes.count(shapes[0]) == 3:  # or else `load` says what is missing
            out[name.replace("query", "qkv")] = torch.cat([out.pop(part) for part in names])
    return out


def unsaved(theirs: Any) -> list[str]:
    """transformers' buffers that follow from its sizes."""
    return [name for name in theirs.state_dict() if UNUSED.search(name)]


def refuse(model: CLAP) -> None:
    """Raise ConfigError for what transformers' ClapModel has no place for."""
    config, encoder = model.config, model.text.encoder
    faults = {
        f"a {config.audio} audio tower": config.audio != "htsat",
        f"{config.fusion} fusion": config.fusion not in ("none", "aff_2d"),
        f"a {encoder.config.model_type} text tower": encoder.config.model_type != "roberta",
        f"{model.text.pooling} pooling": model.text.pooling != "pooler",
        f"{config.mel_scale} mels": config.mel_scale != ("slaney" if config.fusion == "none" else "htk"),
        f"a window of {config.win}": config.win not in (0, config.n_fft),
        "a logit bias": config.logit_bias,
    }
    found = [what for what, wrong in faults.items() if wrong]
    if found:
        raise ConfigError(f"transformers' ClapModel has no {' and no '.join(found)}: keep the model in its own folder")


def clap_config(model: CLAP) -> Any:
    """transformers' ClapConfig of a model."""
    from transformers import ClapConfig

    config, text = model.config, model.text.encoder.config.to_dict()
    fused = config.fusion != "none"
    audio = {
        **FIXED,
        "window_size": config.htsat_window,
        "num_mel_bins": config.n_mels,
        "spec_size": config.htsat_spec,
        "hidden_size": model.audio.dim,
        "depths": list(config.htsat_depths),
        "num_attention_heads": list(config.htsat_heads),
        "num_hidden_layers": len(config.htsat_depths),
        "patch_embeds_hidden_size": config.htsat_width,
        "drop_path_rate": config.htsat_drop_path,
        "hidden_dropout_prob": 0.0,
        "enable_fusion": fused,
        "fusion_type": config.fusion if fused else None,
    }
    words = {key: text[key] for key in TEXT if key in text}
    return ClapConfig(
        text_config=words, audio_config=audio, projection_dim=config.dim, projection_hidden_act=config.activation
    )


def extractor(config: ModelConfig) -> Any:
    """transformers' feature extractor with our front end; it keeps what it lacks of ours (`KEPT`)."""
    from transformers import ClapFeatureExtractor

    seconds = config.clip_seconds
    return ClapFeatureExtractor(
        feature_size=config.n_mels,
        sampling_rate=config.sample_rate,
        hop_length=config.hop,
        max_length_s=int(seconds) if seconds == int(seconds) else seconds,
        fft_window_size=config.n_fft,
        frequency_min=config.fmin,
        frequency_max=config.fmax,
        truncation="rand_trunc" if config.fusion == "none" else "fusion",
        padding=config.filling,
        **{name: getattr(config, name) for name in KEPT},
    )


def our_config(config: Any, folder: Path) -> ModelConfig:
    """Our settings of a transformers CLAP folder; ConfigError for an audio tower that ours can't be."""
    audio = config.audio_config
    stated = audio.to_dict()
    for key, value in FIXED.items():
        if number(stated[key]) != number(value):
            raise ConfigError(f"{folder}: its audio tower has {key} {stated[key]}, ours only {value}")
    if audio.enable_fusion and audio.fusion_type not in (None, "aff_2d"):
        raise ConfigError(f"{folder}: transformers builds no {audio.fusion_type} fusion, whatever its config says")
    text = config.text_config
    context = {"text_context": min(77, text.max_position_embeddings - 1 - (text.pad_token_id or 0))}
    return ModelConfig(
        **context | front_end(folder, audio),
        fusion="aff_2d" if audio.enable_fusion else "none",
        htsat_spec=audio.spec_size,
        htsat_width=audio.patch_embeds_hidden_size,
        htsat_depths=tuple(audio.depths),
        htsat_heads=tuple(audio.num_attention_heads),
        htsat_window=audio.window_size,
        htsat_drop_path=audio.drop_path_rate,
        dim=config.projection_dim,
        activation=config.projection_hidden_act,
    )


def number(value: Any) -> Any:
    """A number that may be given once for each of two sides."""
    return value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value


def front_end(folder: Path, audio: Any) -> dict[str, Any]:
    """Settings of the front end: the extractor's, in preprocessor_config.json, or LAION's if there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        stated = read_json(folder / name) if (folder / name).is_file() else {}
        stated = stated.get("feature_extractor", stated)
        if "hop_length" in stated:
            break
    else:
        return {"n_mels": audio.num_mel_bins, "mel_scale": "htk" if audio.enable_fusion else "slaney"}
    return {
        "sample_rate": stated["sampling_rate"],
        "clip_seconds": float(stated["max_length_s"]),
        "filling": stated["padding"],
        **{name: stated[name] for name in KEPT if name in stated},
        "n_fft": stated["fft_window_size"],
        "hop": stated["hop_length"],
        "n_mels": stated["feature_size"],
        "fmin": float(stated["frequency_min"]),
        "fmax": float(stated["frequency_max"]),
        "mel_scale": "htk" if stated["truncation"] == "fusion" else "slaney",
    }


def text_config(config: Any) -> Any:
    """The RobertaConfig of transformers' ClapTextConfig, its layer_norm_eps (1e-12 if none is stated) included."""
    from transformers import RobertaConfig

    return RobertaConfig(**{key: getattr(config, key) for key in TEXT})


def weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of a folder: model.safetensors, or else pytorch_model.bin."""
    if (folder / "model.safetensors").is_file():
        return read_safetensors(folder / "model.safetensors")
    if (folder / "pytorch_model.bin").is_file():
        return read_tensors(folder / "pytorch_model.bin")
    raise ModelError(f"{folder} has a config but no model.safetensors or pytorch_model.bin: copy it again")
