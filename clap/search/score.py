"""How well captions fit their sounds: the CLAP score, the cosine of a clip's embedding and its caption's.

The file is a contract: `build-dataset --scores FILE --min-score X` reads its columns id and score. Clips without a row
stay, so the dataset to score is one that was built without scores: of one that was filtered by them, a new file would
bring back what the old one had rejected.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clap.checkpoint import atomic
from clap.config import ConfigError
from clap.data import DataError, Dataset, open_split
from clap.embed import embed_some, some
from clap.search.rows import bar, chunks
from clap.systems import System, dataset_rate, digest

BATCH = 256  # clips
TEXTS = ("captions", "generated", "both")
COLUMNS = ("id", "score", "best", "worst")


def score(
    model: System,
    data: str | Sequence[str],
    out: str | Path,
    split: str = "all",
    texts: str = "captions",
    truncation: str = "auto",
) -> dict[str, Any]:
    """Write a Parquet row for each clip: `id`; the mean `score` of its captions, the `best` of them, and which caption
    fits `worst` (0 is the first). Returns counts and the mean.

    `texts` says which sentences count: captions, generated, both. A clip that does not decode has no row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if texts not in TEXTS:
        raise ConfigError(f"texts is {texts!r}: use {', '.join(TEXTS)}")
    if Path(out).is_dir():
        raise ConfigError(f"{out} is a folder: name a file, such as {Path(out) / 'scores.parquet'}")
    rows, means = open_split(data, split, (), dataset_rate(model)), [np.empty(0)]
    about = json.dumps({"model": digest(model), "texts": texts, "truncation": truncation})
    kinds = (pa.string(), pa.float32(), pa.float32(), pa.int32())
    schema = pa.schema(zip(COLUMNS, kinds, strict=True), {"clapboard": about})
    with atomic(Path(out)) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for columns in scored(model, rows, texts, truncation):
            writer.write_table(pa.table([pa.array(each, kind) for each, kind in zip(columns, kinds, strict=True)],
                                        schema=schema))  # fmt: skip
            means.append(columns[1])
    every = np.concatenate(means)
    if not len(every):
        raise DataError(f"not one clip of {rows.name} decodes: build the dataset again")
    return {"clips": len(every), "skipped": len(rows) - len(every), "mean": float(every.mean())}


def scored(model: System, data: Dataset, texts: str, truncation: str) -> Iterator[tuple[list[str], *tuple[Any, ...]]]:
    """The four columns of some clips at a time, without the broken ones."""
    with bar("clips scored", len(data)) as count:
        for at in chunks(np.arange(len(data)), BATCH):
            audio, broken = embed_some(model, some(data, at), truncation)
            count(len(at))
            if not (whole := np.delete(at, list(broken)).tolist()):
                continue
            found = list(scores(model, audio, [data.captions(row, texts) for row in whole]))
            mean, best, worst = (np.array([f(each) for each in found]) for f in (np.mean, np.max, np.argmin))
            yield data.rows["id"].take(whole).to_pylist(), mean, best, worst


def scores(model: System, audio: np.ndarray, captions: list[list[str]]) -> Iterator[np.ndarray]:
    """For each clip the cosines (captions,) of its embedding (clips, dim) and its captions'; each text is read once."""
    place = {text: i for i, text in enumerate(dict.fromkeys(itertools.chain.from_iterable(captions)))}
    text = model.embed_text(list(place))
    for sound, own in zip(audio, captions, strict=True):
        yield text[[place[each] for each in own]] @ sound
