"""Read an exported WebDataset with laion_clap's own loader and print what it makes of it.

laion_clap wants an environment of its own, beside the one of `make setup` whose torch and transformers it borrows:

    python3.11 -m venv peers
    realpath .venv/lib/python3.11/site-packages > peers/lib/python3.11/site-packages/clapboard.pth
    peers/bin/pip install --no-deps laion-clap==1.1.7 webdataset==1.0.2 braceexpand ftfy wget torchlibrosa h5py pillow \
        torchaudio==2.11.0 torchvision==0.29.2
    python cli.py export-webdataset OUT/dataset --out tars/mine
    HF_HUB_OFFLINE=1 PYTHONPATH=../shared/tools peers/bin/python benchmarks/laion_loader.py tars/mine

The tars are found, decoded, filled, cut and batched by laion_clap (get_tar_path_from_dataset_name, get_wds_dataset).
Two things around it are not its own: laion_clap_offline replaces the tokenizer, which it would download, and
torchaudio.load goes through soundfile, as torchaudio 2.11 reads files only with torchcodec.
"""

import argparse
import io
import json
from pathlib import Path
from types import SimpleNamespace

import laion_clap_offline  # noqa: F401 - first, as it says
import soundfile
import torch
import torchaudio

SPLITS = ("train", "valid", "test")


def load(file: str | io.BytesIO) -> tuple[torch.Tensor, int]:
    """What torchaudio.load returns: float32 (channels, samples) and the rate in Hz."""
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate


def settings(tars: list[str], batch: int, texts: str) -> SimpleNamespace:
    """Those of laion_clap's flags that its loader reads."""
    return SimpleNamespace(
        train_data=tars, val_data=tars, remotedata=False, batch_size=batch, world_size=1, workers=1, seed=0,
        parallel_eval=False, horovod=False, prefetch_factor=None, class_index_dict=None, data_filling="repeatpad",
        data_truncating="rand_trunc", text_augment_selection=texts, tmodel="roberta", val_num_samples=None,
    )  # fmt: skip


def read(root: Path, split: str, batch: int, texts: str, show: int) -> None:
    """Print the batches of a split, and fail unless every clip of it came once."""
    from laion_clap.clap_module.utils import get_tar_path_from_dataset_name
    from laion_clap.training import data

    tars = get_tar_path_from_dataset_name([root.name], [split], islocal=True, dataset_path=str(root.parent))
    if not tars:
        return
    loaded = data.get_wds_dataset(
        settings(tars, batch, texts), {"audio_cfg": {}}, is_train=False, is_local=True,
        sizefilepath_=str(root / split / "sizes.json"),
    )  # fmt: skip
    names: list[str] = []
    for number, each in enumerate(loaded.dataloader):
        names += each["audio_name"]
        if number < show:
            print(
                f"{split} batch {number}: waveform {tuple(each['waveform'].shape)}, rates {set(each['audio_orig_sr'])}"
            )
            for name, text in list(zip(each["audio_name"], each["raw_text"], strict=True))[:show]:
                print(f"    {name}: {text}")
    promised = sum(json.loads((root / split / "sizes.json").read_text()).values())
    print(f"{split}: {len(names)} clips in {loaded.dataloader.num_batches} batches, sizes.json says {promised}")
    if len(set(names)) != promised or len(names) != promised:
        raise SystemExit(f"{split}: the loader gave {len(set(names))} different clips of {promised}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tars", type=Path, help="folder with train, valid and test, as export-webdataset writes it")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--texts", default="none", help="laion_clap's text_augment_selection: none, all, augment_only")
    parser.add_argument("--show", type=int, default=2, help="batches, and texts of each, to print")
    given = parser.parse_args()
    torchaudio.load = load
    for split in SPLITS:
        read(given.tars.resolve(), split, given.batch, given.texts, given.show)


if __name__ == "__main__":
    main()
