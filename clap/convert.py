"""Published weights in: LAION-CLAP's .pt files, and audio towers that others trained on AudioSet (HTS-AT, PANNs).

No class of such a file is ever imported or called: only its tensors are read.
"""

import math
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clap.config import AUDIO_MODELS, ModelConfig
from clap.features import front_end
from clap.model import CLAP, UNFIT, ModelError

RENAMES = (  # LAION's names > ours
    (r"^audio_branch\.(?=conv_block)", "audio.blocks."),
    (r"^audio_branch\.", "audio."),
    (r"^text_branch\.", "text.encoder."),
    (r"^logit_scale_", "log_scale_"),
    (r"_transform\.sequential\.", "_transform."),
)
UNUSED = re.compile(  # tables that we compute, class heads, and modules that the original never calls
    r"(^|\.)(spectrogram_extractor|logmel_extractor|tscam_conv|head|fc_audioset)\."
    r"|\.global_att2\.|(^|\.)(relative_position_index|attn_mask|position_ids|token_type_ids)$"
)
FUSED_ONLY = re.compile(r"(^|\.)(mel_conv[12]d|fusion_model)\.")
# torch's own list of a file's classes needs a zip; older files hold numpy's scalars and arrays beside their tensors.
NUMPY = tuple(
    f"numpy.{name}"
    for core in ("core", "_core")
    for name in (f"{core}.multiarray.scalar", f"{core}.multiarray._reconstruct", "dtype", "ndarray")
)
# What the reader raises where bytes are not what they seem.
BROKEN = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, pickle.UnpicklingError,
)  # fmt: skip
TOWERS = {"roberta": "FacebookAI/roberta-base", "bert": "google-bert/bert-base-uncased", "bart": "facebook/bart-base"}
TABLE = "relative_position_bias_table"


class Inert:
    """Stands for an object that a file holds beside tensors, such as a scheduler: takes any arguments, does nothing.

    torch fills no instance of it with items: what is called a dict becomes `Items`, and a subclass of list is refused.
    """

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class Items:
    """Stands for subclasses of dict, such as Lightning's AttributeDict: gives a plain one, whatever the arguments."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


def from_laion(path: str | Path, tokenizer: str | Path | None = None) -> CLAP:
    """The model of a LAION-CLAP checkpoint, its settings recognised from names and shapes, in evaluation mode.

    The file has no tokenizer: `tokenizer` is a folder or Hub id of one, by default that of the tower's original.
    """
    found = {name.removeprefix("module."): tensor for name, tensor in read_tensors(path).items()}
    tensors = our_names(found)
    if "audio_projection.0.weight" not in tensors or not {name.split(".")[0] for name in tensors} >= {"audio", "text"}:
        raise ModelError(
            f"{path} is no checkpoint of LAION-CLAP: it holds {first(found)}, but not audio_branch.*, text_branch.* "
            "and audio_projection.* (a pretrained audio tower alone goes to --init-audio)"
        )
    try:
        encoder, config = text_encoder(tensors), recognise(found, tensors)
        model = CLAP(config, encoder, None)
    except UNFIT as error:
        lacks = "lacks" if isinstance(error, KeyError) else "does not make a model:"
        raise ModelError(f"{path} is a damaged checkpoint: it {lacks} {error}. Download it again") from error
    model.tokenizer = load_tokenizer(tokenizer or config.text, encoder.config.vocab_size)
    load(model, tensors, path)
    return model.eval()


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file that torch saved, by name: those of its `state_dict` or `model` if it has one.

    The rest (an optimiser's state, settings) is neither kept nor, where torch can map the file, read.
    """
    serialization, zipped = torch.serialization, zipfile.is_zipfile(path)
    try:
        foreign = serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        names = {*NUMPY, *foreign}
        allowed: list[Any] = [(Items if name.lower().endswith("dict") else Inert, name) for name in names]
        with serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except BROKEN as error:
        why = str(error).split("WeightsUnpickler error:")[-1].strip().partition("\n")[0]  # torch's way out is unsafe
        raise ModelError(f"{path} is no file of weights that torch can read safely: {why[:200]}") from error
    for key in ("state_dict", "model"):
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not weights by name: give a checkpoint")
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    hollow = [
        name
        for name, value in tensors.items()
        if not value.is_sparse and value.nbytes > value.untyped_storage().nbytes()
    ]
    if hollow:  # of more numbers than the file holds: a model of that size might fill the memory
        raise ModelError(f"{path} holds less than it claims of {first(hollow)}: download it again")
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no whole file of weights ({error}): copy it again") from error


def our_names(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """LAION's tensors under our names, without those that we have no use for."""
    if any(name.startswith("text_branch.decoder.") for name in found):  # BART, of which CLAP hears the encoder
        side = re.compile(r"^text_branch\.(?!encoder\.)")
        found = {name.replace("branch.encoder", "branch"): v for name, v in found.items() if not side.match(name)}
    return {rename(name): tensor for name, tensor in found.items() if not UNUSED.search(name)}


def rename(name: str) -> str:
    """One of LAION's names as we have it."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def recognise(found: dict[str, Tensor], tensors: dict[str, Tensor]) -> ModelConfig:
    """The settings of a checkpoint, from LAION's tensors under its names (`found`) and under ours."""
    fusion = fusion_of(tensors)
    mask = found.get("audio_branch.layers.0.blocks.1.attn_mask")  # (windows of the first stage, tokens, tokens)
    sizes = htsat_sizes(tensors, mask) if "audio.patch_embed.proj.weight" in tensors else pann_sizes(tensors)
    kind = text_kind(tensors)
    return ModelConfig(
        **sizes,
        **front_end_of(found.get("audio_branch.logmel_extractor.melW"), sizes["audio"]),
        n_mels=len(tensors["audio.bn0.weight"]),
        fusion=fusion,
        mel_scale="slaney" if fusion == "none" else "htk",
        int16_quantize=True,
        text=TOWERS[kind],
        text_pooling="mean-all" if kind == "bart" else "auto",
        dim=len(tensors["audio_projection.2.bias"]),
        transforms="audio_transform.0.weight" in tensors,
    )


def htsat_sizes(tensors: dict[str, Tensor], mask: Tensor | None) -> dict[str, Any]:
    """HTSAT's settings; the side of its image can only be told from the mask of a shifted block."""
    tables = {name: tensor for name, tensor in tensors.items() if name.endswith(TABLE)}
    depths = Counter(int(name.split(".")[2]) for name in tables)
    firsts = [tables[f"audio.layers.{stage}.blocks.0.attn.{TABLE}"] for stage in sorted(depths)]
    window = (math.isqrt(len(firsts[0])) + 1) // 2
    proj = tensors["audio.patch_embed.proj.weight"]
    return {
        "audio": "htsat",
        "htsat_width": len(proj),
        "htsat_depths": tuple(depths[stage] for stage in sorted(depths)),
        "htsat_heads": tuple(table.shape[1] for table in firsts),
        "htsat_window": window,
        "htsat_spec": 256 if mask is None else math.isqrt(len(mask)) * window * proj.shape[-1],
    }


def pann_sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """PANN's settings."""
    if "audio.blocks.conv_block1.conv1.weight" not in tensors:
        raise ModelError(f"its audio tower is neither an HTSAT nor a PANN: it holds {first(tensors)}")
    blocks = sum(bool(re.fullmatch(r"audio\.blocks\.conv_block\d+\.conv1\.weight", name)) for name in tensors)
    convolutions = [tensors[f"audio.blocks.conv_block{i + 1}.conv1.weight"] for i in range(blocks)]
    return {
        "audio": "pann",
        "pann_widths": tuple(len(weight) for weight in convolutions),
        "pann_kernel": convolutions[0].shape[-1],
        "pann_convs": 1 + ("audio.blocks.conv_block1.conv2.weight" in tensors),
    }


def fusion_of(tensors: dict[str, Tensor]) -> str:
    """The fusion of an audio tower, by which modules it has."""
    convolution = tensors.get("audio.patch_embed.proj.weight", tensors.get("audio.blocks.conv_block1.conv1.weight"))
    if convolution is not None and convolution.shape[1] == 4:
        return "channel_map"
    names = " ".join(tensors)
    kind = "iaff" if ".local_att2." in names else "aff" if ".local_att." in names else "daf"
    return f"{kind}_1d" if ".mel_conv1d." in names else f"{kind}_2d" if ".mel_conv2d." in names else "none"


def front_end_of(mel: Tensor | None, audio: str) -> dict[str, Any]:
    """Window, step, band and length: those of LAION's audio model that has this table of mels (bins, mels)."""
    if mel is None:
        return {}
    for settings in AUDIO_MODELS.values():
        table = front_end(ModelConfig(**settings)).filterbank.T
        if settings["audio"] == audio and table.shape == mel.shape and torch.allclose(table, mel.float(), atol=1e-6):
            return {key: settings[key] for key in ("n_fft", "hop", "fmax", "clip_seconds") if key in settings}
    raise ModelError(
        f"no audio model of LAION's has the checkpoint's table of mels {tuple(mel.shape)}: its front end is unknown "
        f"(known: {', '.join(AUDIO_MODELS)})"
    )


def text_kind(tensors: dict[str, Tensor]) -> str:
    """Which of `TOWERS` the text tower is; RoBERTa has one type of token, BERT two."""
    types = tensors.get("text.encoder.embeddings.token_type_embeddings.weight")
    if types is not None:
        return "roberta" if len(types) == 1 else "bert"
    if "text.encoder.layernorm_embedding.weight" in tensors:
        return "bart"
    raise ModelError(
        "its text tower is no RoBERTa, BERT or BART (LAION published none with CLIP's): it holds "
        + first(name for name in tensors if name.startswith("text."))
    )


def text_encoder(tensors: dict[str, Tensor]) -> Any:
    """The text tower's encoder, weights still random; all three kinds have heads of 64."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    kind, prefix = text_kind(tensors), "text.encoder."
    shape = {name.removeprefix(prefix): tuple(v.shape) for name, v in tensors.items() if name.startswith(prefix)}
    if kind == "bart":
        return bart_encoder(shape)
    vocab, width = shape["embeddings.word_embeddings.weight"]
    sizes: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": len({name.split(".")[2] for name in shape if name.startswith("encoder.layer.")}),
        "num_attention_heads": width // 64,
        "intermediate_size": shape["encoder.layer.0.intermediate.dense.weight"][0],
        "max_position_embeddings": shape["embeddings.position_embeddings.weight"][0],
        "type_vocab_size": shape["embeddings.token_type_embeddings.weight"][0],
    }
    if kind == "bert":
        return BertModel(BertConfig(**sizes))
    return RobertaModel(RobertaConfig(**sizes, layer_norm_eps=1e-5))  # as roberta-base; transformers' default is 1e-12


def bart_encoder(shape: dict[str, tuple[int, ...]]) -> Any:
    """The encoder of a BART of these shapes."""
    from transformers import BartConfig, BartModel

    vocab, width = shape["embed_tokens.weight"]
    config = BartConfig(
        vocab_size=vocab,
        d_model=width,
        encoder_layers=len({name.split(".")[1] for name in shape if name.startswith("layers.")}),
        encoder_attention_heads=width // 64,
        encoder_ffn_dim=shape["layers.0.fc1.weight"][0],
        max_position_embeddings=shape["embed_positions.weight"][0] - 2,  # BART's count from 2
        decoder_layers=1,
        decoder_attention_heads=width // 64,
    )
    return BartModel(config).get_encoder()


def load_tokenizer(name: str | Path, vocab: int) -> Any:
    """The tokenizer of a folder or Hub id; ModelError if it is out of reach or knows more than `vocab` pieces."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the checkpoint has no tokenizer, and {name} gave none (offline?): give one as tokenizer, a folder "
            f"or Hub id such as {TOWERS['roberta']}"
        ) from error
    if len(tokenizer) > vocab:
        raise ModelError(f"the tokenizer {name} has {len(tokenizer)} pieces, the text tower {vocab}: give another one")
    return tokenizer


def load(module: nn.Module, tensors: dict[str, Tensor], where: str | Path, optional: Iterable[str] = ()) -> None:
    """Fill a module; ModelError says which names miss (but for the `optional`), are unknown or have another shape."""
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys() - set(optional))
    unknown = sorted(tensors.keys() - expected.keys())
    both = sorted(expected.keys() & tensors.keys())
    other = [
        f"{name} {tuple(tensors[name].shape)} not {tuple(expected[name].shape)}"
        for name in both
        if tensors[name].shape != expected[name].shape
    ]
    faults = {"lacks": missing, "has no place for": unknown, "has other shapes in": other}
    if any(faults.values()):
        said = "; ".join(f"{what} {first(names)}" for what, names in faults.items() if names)
        raise ModelError(f"{where} does not fit the model it is for: it {said}")
    module.load_state_dict(tensors, strict=False)


def init_audio(tower: nn.Module, path: str | Path) -> list[str]:
    """Start an audio tower from weights trained on AudioSet; returns the names that stay random (fusion's).

    Takes the releases of HTS-AT (`sed_model.*` in a Lightning checkpoint) and of PANNs (`model`), towers trained in
    HTS-AT's code, and the audio side of a LAION-CLAP checkpoint.
    """
    found = {re.sub(r"^(module|sed_model)\.", "", name): tensor for name, tensor in read_tensors(path).items()}
    if any(name.startswith("audio_branch.") for name in found):
        found = {name: tensor for name, tensor in found.items() if name.startswith("audio_branch.")}
        found = {name.removeprefix("audio_branch."): tensor for name, tensor in found.items()}
    tensors = {
        re.sub(r"^(?=conv_block)", "blocks.", name): tensor for name, tensor in found.items() if not UNUSED.search(name)
    }
    spared = [name for name in tower.state_dict() if FUSED_ONLY.search(name) and name not in tensors]
    load(tower, tensors, path, spared)
    return spared


def first(names: Iterable[str], most: int = 3) -> str:
    """A few of the names, and how many there are."""
    listed = sorted(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > most else ""
    return (", ".join(listed[:most]) or "nothing") + more
