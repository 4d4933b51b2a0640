"""Print how far our numbers are from the originals', and fail if one is farther than it may be.

    python benchmarks/parity.py                 # against the golden values in ../shared, about a minute
    python benchmarks/parity.py --quick         # without the full-size towers
    python benchmarks/parity.py --compile       # and torch.compile, which wants a C++ compiler

laion_clap itself, side by side on real clips with random weights copied across, in the environment of its own that
benchmarks/laion_loader.py describes:

    HF_HUB_OFFLINE=1 PYTHONPATH=../shared/tools:. peers/bin/python benchmarks/parity.py --laion ../shared/data/esc10
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
GOLDEN = ROOT.parent / "shared" / "golden"
SMALL = {"width": 8, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8)}


class Row(NamedTuple):
    """One comparison: the largest difference found, and the largest allowed."""

    what: str
    unit: str
    difference: float
    allowed: float


def far(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference."""
    return float((ours.detach().double() - theirs.double()).abs().max())


def front_ends() -> Iterator[Row]:
    """Both mels of four kinds of clips, above -80 dB."""
    from clap.features import LogMel

    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "a_frontend.npz").items()}
    for scale, key in {"slaney": "logmel_torchlibrosa", "htk": "get_mel"}.items():
        worst = 0.0
        for clip in ("noise", "click", "esc10", "silence"):
            theirs = golden[f"{clip}.{key}"]
            heard = theirs > (-80 if clip != "silence" else -101)
            ours = LogMel(scale=scale)(golden[f"{clip}.int16"].float()[None] / 32767)[0, 0]
            worst = max(worst, far(ours[heard], theirs[heard]))
        yield Row(f"log-mel, {scale}", "dB", worst, 1e-3)


def fills() -> Iterator[Row]:
    """Filled waveforms by their hash, fused mels, and the shrunken channel."""
    import hashlib

    from test_fill import LENGTHS, signal

    from clap.config import FILLINGS, ModelConfig
    from clap.features import fuse, mels_for
    from clap.fill import fill

    facts = json.loads((GOLDEN / "b_audio_features.json").read_text())
    wrong = 0
    for filling in FILLINGS:
        for name in ("s1", "s7", "s10"):
            pcm = (fill(signal(LENGTHS[name]), 480000, filling) * 32767).round().astype(np.int16)
            wrong += hashlib.sha256(pcm.tobytes()).hexdigest() != facts[f"{name}.{filling}.rand_trunc"]["sha256_i16"]
    yield Row("fillings (3 ways, 3 lengths)", "clips that differ", wrong, 0)
    mels = mels_for([signal(LENGTHS["s10p480"])], ModelConfig(fusion="aff_2d", mel_scale="htk"))
    theirs = torch.from_numpy(np.load(GOLDEN / "b_audio_features.npz")["s10p480.repeatpad.fusion.mel_sub"])
    yield Row("fused mels: three crops", "dB", far(mels.parts[0, :, ::10, ::4], theirs[1:]), 1e-3)
    shrunk = np.load(GOLDEN / "b_mel_shrink.npz")
    mel = torch.from_numpy(shrunk["mel"])
    ours = fuse(mel.__getitem__, len(mel), ModelConfig(fusion="aff_2d")).whole[0, 0]
    yield Row("fused mels: the shrunken whole", "dB", far(ours, torch.from_numpy(shrunk["no_antialias"])), 1e-4)


def fusion_modules() -> Iterator[Row]:
    """Outputs in evaluation and training, and gradients."""
    from test_fusion import golden_module

    for name in ("DAF", "AFF", "iAFF"):
        worst = 0.0
        for dims, batch in ((1, 1), (1, 3), (2, 1), (2, 3)):
            model, golden = golden_module(name, dims)
            x, residual = (golden(batch, key).requires_grad_() for key in ("x", "residual"))
            out = model.eval()(x, residual)
            gradients = torch.autograd.grad(out.square().sum(), (x, residual))
            found = dict(zip(("out_eval", "gx_eval", "gr_eval"), (out, *gradients), strict=True))
            found["out_train"] = model.train()(x, residual)
            worst = max(worst, *(far(ours, golden(batch, key)) for key, ours in found.items()))
        yield Row(f"{name}, 1d and 2d, with gradients", "", worst, 2e-5)


@torch.no_grad()
def small_towers() -> Iterator[Row]:
    """The original's small HTSAT with every fusion, on clips of which none, one and all are longer."""
    from test_htsat import HTSAT, fill, golden_mel, golden_mels, load_golden

    golden = load_golden("d_htsat_small.safetensors")
    model = HTSAT(**SMALL).eval()
    model.load_state_dict({name: golden[f"sd.None.{name}"] for name in model.state_dict()})
    yield Row("HTSAT, small", "", far(model(golden_mel()), golden["None.longer_none.embedding"]), 5e-6)
    for fusion in ("daf_1d", "aff_1d", "iaff_1d", "daf_2d", "aff_2d", "iaff_2d", "channel_map"):
        model, found = fill(HTSAT(**SMALL, fusion=fusion)), []
        for name, longer in {"none": (False, False), "one": (False, True), "all": (True, True)}.items():
            theirs = golden.get(f"{fusion}.longer_{name}.embedding")  # 1d with none: the original crashes
            if theirs is not None:
                longer = (True, True) if fusion == "channel_map" else longer  # there a clip always has four channels
                found.append(far(model(golden_mels(*longer)), theirs))
        yield Row(f"HTSAT, small, {fusion}", "", max(found), 5e-6)


@torch.no_grad()
def full_towers(quick: bool) -> Iterator[Row]:
    """Towers of the paper's sizes, filled with the golden procedure."""
    from test_htsat import fill, golden_mel, golden_mels, load_golden

    from clap.config import AUDIO_MODELS, ModelConfig
    from clap.model import audio_tower

    golden = load_golden("d_encoders_full_filled.safetensors")
    towers = {
        "Cnn6": ("PANN-6", "none"),
        "htsat_tiny": ("HTSAT-tiny", "none"),
        "htsat_tiny_aff2d": ("HTSAT-tiny", "aff_2d"),
        "Cnn10": ("PANN-10", "none"),
        "Cnn14": ("PANN-14", "none"),
        "Cnn14_aff1d": ("PANN-14", "aff_1d"),
        "Cnn14_aff2d": ("PANN-14", "aff_2d"),
    }
    for key, (name, fusion) in list(towers.items())[: 1 if quick else None]:
        tower = audio_tower(ModelConfig(**AUDIO_MODELS[name], fusion=fusion))
        model = fill(tower, lambda ours: ours.removeprefix("blocks."))
        mels = golden_mel() if fusion == "none" else golden_mels(False, True)
        kind = name if fusion == "none" else f"{name}, {fusion}"
        yield Row(f"{kind}, full size", "", far(model(mels), golden[f"{key}.embedding"]), 1e-5)


def losses() -> Iterator[Row]:
    """Plain and MLP loss at three scales, and kappa, with the gradients of both embeddings and the scale."""
    from test_loss import PLAIN, embeddings, identities

    from clap.loss import compute

    golden = json.loads((GOLDEN / "e_cliploss.json").read_text())
    for loss, name in {"softmax": "plain", "mlp": "MLP"}.items():
        worst = [0.0, 0.0]
        for scale in ("1.0000", "14.2857", "100.0000"):
            theirs = golden[f"single.scale{scale}.mlp{int(loss == 'mlp')}"]
            out = embeddings(golden["inputs"], 1 / 0.07 if scale == "14.2857" else float(scale))
            value = compute(replace(PLAIN, loss=loss), out, *identities(8))
            value.backward()
            pairs = ((out.audio, "g_audio"), (out.text, "g_text"), (out.scale_a, "g_scale"))
            found = [far(part.grad, torch.tensor(theirs[key])) for part, key in pairs]
            worst = [max(worst[0], abs(value.item() - theirs["loss"])), max(worst[1], *found)]
        yield Row(f"{name} loss", "", worst[0], 3e-6)
        yield Row(f"{name} loss, gradients", "", worst[1], 1e-5)
    value = compute(replace(PLAIN, loss="mlp", kappa=1.0), embeddings(golden["inputs"]), *identities(8))
    yield Row("MLP loss, kappa 1", "", abs(value.item() - golden["single.kappa1.mlp1"]["loss"]), 3e-6)


def scores() -> Iterator[Row]:
    """Retrieval with five captions, its unsorted mAP included, and zero-shot accuracy."""
    from clap import metrics

    arrays, theirs = np.load(GOLDEN / "f_metrics.npz"), json.loads((GOLDEN / "f_metrics.json").read_text())
    got = metrics.retrieval(arrays["audio"], arrays["text5"], np.repeat(np.arange(20), 5))
    expected, found = theirs["evaluate_clotho_audiocaps_5cap"], []
    for way, values in got.items():
        keys = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "map10_laion": "mAP@10"}
        found += [abs(values[ours] - expected[f"Clotho-test/{way}_{key}"]) for ours, key in keys.items()]
    yield Row("retrieval, five captions", "", max(found), 1e-9)
    relevant = np.eye(7, dtype=bool)[arrays["labels"]]
    accuracy = metrics.classification(arrays["audio"] @ arrays["cls"].T, relevant, list("abcdefg"))["accuracy"]
    yield Row("zero-shot accuracy", "", abs(accuracy - theirs["zero_shot"]["R@1"]), 1e-9)


@torch.no_grad()
def transformers_models() -> Iterator[Row]:
    """transformers' own embeddings of its own small models, fused and not, read from the folder that it saves."""
    from test_convert import golden_clap
    from test_htsat import golden_mels, load_golden

    from clap.model import CLAP

    golden = load_golden("g_hf_clap.safetensors")
    for which, cases in {"fused0": {"none": False}, "fused1": {"none": False, "one": True}}.items():
        with tempfile.TemporaryDirectory() as folder:
            golden_clap(which, Path(folder))
            model = CLAP.from_pretrained(folder)
        for name, longer in cases.items():
            ours = model.encode_audio(golden_mels(False, longer))
            kind = "plain" if which == "fused0" else f"fused, {name} longer"
            yield Row(f"transformers, {kind}", "", far(ours, golden[f"{which}.{name}.audio_embeds"]), 1e-6)


@torch.no_grad()
def precisions(compiled: bool) -> Iterator[Row]:
    """1 - cosine to float32 of bfloat16, and of torch.compile, on the original's small HTSAT."""
    from test_htsat import HTSAT, fill, golden_mels

    for fusion in ("none", "aff_2d"):
        model, mels = fill(HTSAT(**SMALL, fusion=fusion)), golden_mels(False, fusion != "none")
        exact = model(mels)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(mels).float()
        yield Row(f"bfloat16, HTSAT, fusion {fusion}", "1 - cosine", 1 - cosine(half, exact), 1e-3)
        if compiled:
            fast = torch.compile(model)
            yield Row(f"torch.compile, HTSAT, fusion {fusion}", "1 - cosine", 1 - cosine(fast(mels), exact), 1e-3)


def cosine(a: Tensor, b: Tensor) -> float:
    """The smallest cosine of two rows."""
    return float(torch.cosine_similarity(a.double(), b.double()).min())


def rows(quick: bool = False, compiled: bool = False) -> Iterator[Row]:
    """Every comparison with golden values."""
    parts: tuple[Callable[[], Iterator[Row]], ...] = (
        front_ends, fills, fusion_modules, small_towers, lambda: full_towers(quick), losses, scores,
        transformers_models, lambda: precisions(compiled),
    )  # fmt: skip
    for part in parts:
        yield from part()


# ---- laion_clap itself


@torch.no_grad()
def laion(folder: Path, n_clips: int) -> Iterator[Row]:
    """laion_clap's embeddings of files and texts with random weights, and ours with the same, from its .pt file."""
    import laion_clap_offline  # noqa: F401 - first, as it says

    files = sorted(path for path in folder.rglob("*") if path.suffix in (".ogg", ".wav", ".flac"))
    files = files[:: max(1, len(files) // n_clips)][:n_clips]
    for amodel, fused in (("HTSAT-tiny", False), ("HTSAT-tiny", True), ("PANN-14", False)):
        theirs, ours, name = *twins(amodel, fused), amodel + (", fused" if fused else "")
        audio = torch.tensor(theirs.get_audio_embedding_from_filelist([str(path) for path in files]))
        apart = float(torch.cdist(audio, audio).max())  # not 0: weights that hear no difference would prove nothing
        what = f"laion_clap, {name}: {len(files)} files (up to {apart:.2f} apart)"
        yield Row(what, "", far(ours.embed_audio(files, tensor=True), audio), 1e-5)
        if fused:
            yield Row(f"laion_clap, {name}: a clip of 25 s", "", longer(theirs, ours, files), 1e-5)
        yield Row(f"laion_clap, {name}: texts", "", far(texts(ours), texts(ours, theirs)), 1e-5)


def twins(amodel: str, fused: bool) -> tuple[Any, Any]:
    """laion_clap's model with random weights and statistics, and ours made of its checkpoint."""
    from laion_clap import CLAP_Module

    from clap.model import CLAP
    from clap.text import train_tokenizer

    torch.manual_seed(0)
    theirs = CLAP_Module(enable_fusion=fused, device="cpu", amodel=amodel).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):  # as if trained: else clips are all alike
            mels = module.num_features == 64
            module.running_mean.normal_(-30 if mels else 0, 1)
            module.running_var.uniform_(*((100, 400) if mels else (0.5, 2)))
    if amodel.startswith("PANN"):  # whose random convolutions need statistics that fit them
        settle(theirs.model)
    for module in theirs.model.text_branch.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5  # roberta-base's, which laion_clap downloads; transformers' default is another
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(CAPTIONS, 100).save_pretrained(folder)
        state = {f"module.{name}": tensor for name, tensor in theirs.model.state_dict().items()}
        torch.save({"epoch": 1, "state_dict": state}, Path(folder) / "laion.pt")
        return theirs, CLAP.from_pretrained(Path(folder) / "laion.pt", tokenizer=folder)


def settle(model: Any) -> None:
    """Batch norms' statistics from a few noises, loud and soft, high and low."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.9
    rng, model = np.random.default_rng(0), model.train()
    clips = [10.0**-i * np.convolve(rng.standard_normal(480_000), np.ones(1 + 3 * i), "same") for i in range(4)]
    waves = [{"waveform": torch.from_numpy(clip.clip(-1, 1).astype(np.float32))} for clip in clips]
    model.get_audio_embedding(waves)
    model.eval()


CAPTIONS = ["A dog barks.", "Rain falls on a tin roof and a child laughs.", "An engine idles, then stops."]


def texts(ours: Any, theirs: Any = None) -> Tensor:
    """Embeddings of a few captions, by laion_clap padded to 77 tokens."""
    if theirs is None:
        return ours.embed_text(CAPTIONS, tensor=True)

    def padded(captions: list[str]) -> dict[str, Tensor]:
        found = ours.tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt")
        return {key: found[key] for key in ("input_ids", "attention_mask")}

    return theirs.get_text_embedding(CAPTIONS, tokenizer=padded, use_tensor=True)


def longer(theirs: Any, ours: Any, files: list[Path]) -> float:
    """A long clip: laion_clap is given our mels, for it draws its crops at random and shrinks with antialias now."""
    from clap.embed import waveforms
    from clap.features import mels_for, quantise
    from clap.fusion import stack

    parts = waveforms(files[:5], 48000, 48000, 480000, "auto")
    clip = np.concatenate(list(parts))[:1_200_000]
    clips = [np.tile(clip, 3)[:1_200_000], clip[:300_000]]
    mels = mels_for(clips, ours.config, log_mel=ours.log_mel)
    data = [
        {"mel_fusion": mel, "longer": flag[None], "waveform": quantise(torch.from_numpy(clips[1]))}
        for mel, flag in zip(stack(mels), mels.longer, strict=True)
    ]
    return far(ours.encode_waveforms(clips), theirs.model.get_audio_embedding(data))


def show(found: Iterator[Row]) -> bool:
    """Print rows as they come; whether all are near enough."""
    near = True
    for row in found:
        verdict = "" if row.difference <= row.allowed else "  TOO FAR"
        print(f"{row.what:60} {row.difference:9.1e} {row.unit:18} (allowed {row.allowed:.0e}){verdict}", flush=True)
        near = near and not verdict
    return near


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the full-size towers")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--laion", type=Path, help="a folder of clips: laion_clap itself, side by side")
    parser.add_argument("--clips", type=int, default=8)
    given = parser.parse_args()
    found = laion(given.laion, given.clips) if given.laion else rows(given.quick, given.compile)
    if not show(found):
        raise SystemExit("too far from the original")


if __name__ == "__main__":
    main()
