"""Reject clips that another clip repeats: the same bytes, the same samples, or nearly the same sound.

Clips of evaluation corpora, where their audio is at hand, take part as clips that came first: what repeats one of them
is an `evaluation-overlap`, whatever --dedup says of the others, unless a list holds it out itself. They are cut from
longer recordings, so that it is enough if most of the shorter of two clips overlaps.

A barrier: `gather` compares the clips of every part and writes its verdicts to one file; the stage then reads them.
Of equals that one is kept which has something to say (captions, labels or tags), then the one with the smallest id.

Nearly the same sound is told by fingerprints, which cover the first two minutes of a clip and say nothing of one
under about 3 s (what lies later, or is shorter, is told by bytes and samples alone): a clip is rejected if at some
alignment it overlaps more than half of the kept clip and few of the bits differ. It must resemble the kept clip itself,
never just a neighbour's neighbour. The clips that are compared at all are those that `fingerprint.meetings` finds.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, ClassVar, NamedTuple

from pipelines.clip import Clip
from pipelines.disk import BuildError, atomic
from pipelines.evaluation import HELD_OUT, HELP, Lists
from pipelines.setting import setting

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from pipelines.fingerprint import Anchors

KINDS = ("none", "exact", "near")
ROWS = ["id", "reason", "split", "sha256", "start", "end", "pcm_md5", "duration", "captions", "labels", "tags"]

BLOCK = 2**22  # words of fingerprints looked at at once

SHARE = 0.55  # of the longer clip that must overlap
SOUNDING = 32  # frames (1 s) in which both must be heard
WRONG = 0.22  # highest share of wrong bits: copies of ESC-10's sounds have up to 0.18, strangers 0.35 and more


@dataclass(frozen=True)
class Dedup:
    """Reject clips that repeat a kept one; call `gather` first."""

    packs: ClassVar[bool] = False

    dedup: str = setting("exact", "reject duplicates: none, exact (same bytes or same samples), near (same sound too)")
    exclude_evaluation: tuple[str, ...] = setting((), HELP, metavar="NAME[=METADATA],...")
    lists: Path | None = None  # where those of exclude_evaluation are
    verdicts: Path | None = None

    def __post_init__(self) -> None:
        if self.dedup not in KINDS:
            raise BuildError(f"dedup cannot be {self.dedup!r}: choose one of {', '.join(KINDS)}")

    def bound(self, lists: Lists) -> "Dedup":
        """The stage with the evaluation corpora that its build has audio of."""
        return replace(self, exclude_evaluation=lists.heard, lists=lists.path if lists.heard else None)

    def gather(self, parts: Sequence[Path], path: Path) -> "Dedup":
        """Compare the clips of all parts, write the verdicts to `path` unless it exists; returns the stage for them."""
        assert self.lists or not self.exclude_evaluation, "evaluation.bind comes first"
        if not path.exists():
            write_verdicts(path, find(parts, self.dedup, path.parent, self.lists))
        return replace(self, verdicts=path)

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        assert self.verdicts is not None, "gather comes first"
        verdicts = read_verdicts(self.verdicts, self.verdicts.stat().st_mtime_ns)
        for clip in clips:
            reason, detail = verdicts.get(clip.id, ("", ""))
            yield clip.reject("dedup", reason, detail) if reason else clip


def write_verdicts(path: Path, verdicts: "pa.Table") -> None:
    """Write a table of id, reason and detail atomically."""
    import pyarrow.parquet as pq

    with atomic(path) as temporary:
        pq.write_table(verdicts, temporary, compression="zstd")


@lru_cache(maxsize=2)
def read_verdicts(path: Path, written: int) -> dict[str, tuple[str, str]]:
    """Reason and detail of every rejected clip by its id; `written` tells one file of a name from the next."""
    import pyarrow.parquet as pq

    columns = [column.to_pylist() for column in pq.read_table(path, columns=["id", "reason", "detail"]).columns]
    return {id: (reason, detail) for id, reason, detail in zip(*columns, strict=True)}


class Candidates(NamedTuple):
    """The clips to compare, best first: `guards` clips of evaluation corpora, then the build's own.

    `on` names for each clip the list that it stands on, "" for most of the build's own; those `held_out` by it are
    not compared with other lists.
    """

    rows: "pa.Table"
    guards: int
    on: list[str]
    held_out: list[bool]

    def guarded(self, guard: int, clip: int) -> bool:
        """Whether an evaluation clip speaks against a clip."""
        return self.on[guard] != self.on[clip] and not self.held_out[clip]


def find(parts: Sequence[Path], kind: str, folder: Path, lists: Path | None = None) -> "pa.Table":
    """The verdicts on the clips of all parts: a table of id, reason and detail."""
    import numpy as np
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder, prefix=".prints.", suffix=".tmp") as words:
        clips = candidates(parts, kind, lists, words)
        copied = copies(clips)
        kept, same_bytes = equals(clips, list(copied), kind)
        alone = kept == np.arange(len(kept))
        alone[list(copied)] = False
        close = near(clips, words, alone, kind)
    names = clips.rows["id"]
    told = {clip: ("evaluation-overlap", f"same {what} as {names[of]}") for clip, (of, what) in copied.items()}
    for clip, of, rate in close:
        reason = "evaluation-overlap" if of < clips.guards else "near-duplicate"
        told[clip] = reason, f"sounds like {names[of]} (bit error rate {rate:.2f})"
    repeated = np.flatnonzero(kept != np.arange(len(kept)))
    for clip, of in zip(repeated.tolist(), kept[repeated].tolist(), strict=True):
        reason, why = told.get(of, ("", ""))  # of the one that would have been kept
        same = f"same {'bytes' if same_bytes[clip] else 'samples'} as {names[of]}"
        if reason == "evaluation-overlap":  # the list first: a long detail loses its end
            told[clip] = reason, f"{why}, as {names[of]} with the same {'bytes' if same_bytes[clip] else 'samples'}"
        else:
            told[clip] = "duplicate", f"{same}, which {why}" if why else same
    reasons, details = ([verdict[i] for verdict in told.values()] for i in (0, 1))
    ids = names.take(pa.array([*told], pa.int64()))
    return pa.table({"id": ids, "reason": pa.array(reasons, pa.string()), "detail": pa.array(details, pa.string())})


def candidates(parts: Sequence[Path], kind: str, lists: Path | None, words: IO[bytes]) -> Candidates:
    """The clips to compare, their fingerprints written to `words` if sounds are compared at all."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    guards, ids = read_rows([], None), pa.array([], pa.string())
    if lists:
        from pipelines.prints import write_prints  # loads numpy

        guards, ids = read_rows([write_prints(lists)], words), pq.read_table(lists, columns=["clip"])["clip"]
    sounds = words if kind == "near" or len(guards) else None
    rows = pa.concat_tables([guards, read_rows(parts if kind != "none" or len(guards) else [], sounds)])
    listed = pc.is_in(rows["id"], value_set=ids).to_pylist()  # an evaluation clip's id begins with its list's name
    on = [id.partition("/")[0] if yes else "" for id, yes in zip(rows["id"].to_pylist(), listed, strict=True)]
    held_out = [bool(name) and out for name, out in zip(on, rows["held_out"].to_pylist(), strict=True)]
    return Candidates(rows.combine_chunks(), len(guards), on, held_out)


def copies(clips: Candidates) -> dict[int, tuple[int, str]]:
    """{clip: (the evaluation clip that speaks against it, as it equals it in "bytes" or "samples")}."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[int, tuple[int, str]] = {}
    for what in ("bytes", "samples"):
        known: dict[str, list[int]] = {}
        for guard, value in enumerate(clips.rows[what][: clips.guards].to_pylist()):
            if value:
                known.setdefault(value, []).append(guard)
        column = clips.rows[what][clips.guards :]
        same = pc.indices_nonzero(pc.is_in(column, value_set=pa.array([*known], pa.string()))).to_pylist()
        for row in same:
            clip = clips.guards + row
            of = next((each for each in known[column[row].as_py()] if clips.guarded(each, clip)), None)
            if of is not None:
                found.setdefault(clip, (of, what))
    return found


def equals(clips: Candidates, copied: list[int], kind: str) -> "tuple[np.ndarray, np.ndarray]":
    """As `exact`, of the build's own clips that no evaluation clip equals; every other one stands for itself."""
    import numpy as np

    kept, same_bytes = np.arange(len(clips.rows)), np.zeros(len(clips.rows), bool)
    if kind != "none":
        own = np.setdiff1d(np.arange(clips.guards, len(kept)), copied)
        first, same = exact(clips.rows.take(own))
        kept[own], same_bytes[own] = own[first], same
    return kept, same_bytes


def read_rows(parts: Sequence[Path], words: IO[bytes] | None) -> "pa.Table":
    """The clips that no stage rejected, best first: what `exact` and `near` look at.

    Fingerprints go to the file `words`, one after another; `first` and `frames` say where each one lies.
    """
    import pyarrow as pa

    empty = {"id": pa.string(), "mute": pa.bool_(), "held_out": pa.bool_(), "bytes": pa.string(),
             "samples": pa.string(), "duration": pa.float64(), "first": pa.int64(), "frames": pa.int64()}  # fmt: skip
    table = pa.concat_tables([pa.schema(empty).empty_table(), *(read_part(part, words) for part in parts)])
    return table.sort_by([("mute", "ascending"), ("id", "ascending")]).combine_chunks()


def read_part(part: Path, words: IO[bytes] | None) -> "pa.Table":
    """One part's share of `read_rows`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = pq.read_table(part, columns=ROWS + ["fingerprint"] * (words is not None))
    rows = rows.filter(pc.equal(rows["reason"], "")).combine_chunks()
    said = [pc.list_value_length(rows[name]) for name in ("captions", "labels", "tags")]
    section = [pc.fill_null(pc.cast(rows[name], pa.string()), "") for name in ("start", "end")]
    frames = np.zeros(len(rows), np.int64)
    first = 0
    if words is not None:
        first = words.tell() // 4
        frames = pc.binary_length(rows["fingerprint"]).to_numpy() // 4
        for chunk in rows["fingerprint"].to_pylist():
            words.write(chunk)
    return pa.table(
        {
            "id": rows["id"],
            "mute": pc.equal(pc.add(pc.add(said[0], said[1]), said[2]), 0),
            "held_out": pc.is_in(rows["split"], value_set=pa.array(HELD_OUT)),
            "bytes": pc.if_else(
                pc.equal(rows["sha256"], ""), "", pc.binary_join_element_wise(rows["sha256"], *section, " ")
            ),
            "samples": rows["pcm_md5"],
            "duration": rows["duration"],
            "first": first + np.cumsum(frames) - frames,
            "frames": frames.astype(np.int64),
        }
    )


def exact(clips: "pa.Table") -> "tuple[np.ndarray, np.ndarray]":
    """For every clip the kept one that equals it (itself if none does), and whether their bytes are the same."""
    import numpy as np

    bytes_ = firsts(clips["bytes"])
    kept = np.minimum(bytes_, firsts(clips["samples"]))
    while (kept[kept] != kept).any():  # what equals an equal is equal
        kept = kept[kept]
    return kept, bytes_ == bytes_[kept]


def firsts(column: "pa.ChunkedArray") -> "np.ndarray":
    """The index of the first row with the same text; of an empty text its own."""
    import numpy as np
    import pyarrow.compute as pc

    codes = column.combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.where(pc.equal(column, "").to_numpy(), np.arange(len(codes)), first[inverse])


def near(clips: Candidates, words: IO[bytes], alive: "np.ndarray", kind: str) -> list[tuple[int, int, float]]:
    """(clip, the kept clip that it sounds like, share of wrong bits) for every near duplicate, best first.

    Evaluation clips are always kept. Of a build that is not to be rid of near duplicates only they are compared with.
    """
    import numpy as np

    from pipelines.fingerprint import CLIPS, meetings

    frames = np.where(alive, clips.rows["frames"].to_numpy(), 0)
    if len(frames) > CLIPS:
        raise BuildError(f"--dedup near compares at most {CLIPS:,} clips, not {len(frames):,}: use --dedup exact")
    words.flush()
    if not frames.any():
        return []
    prints = Prints(words, clips.rows["first"].to_numpy(), frames)
    durations = clips.rows["duration"].fill_null(0).to_numpy()
    pairs = meetings(prints.anchors())
    pairs = pairs[(pairs[:, 0] >= clips.guards) & ((pairs[:, 1] < clips.guards) | (kind == "near"))]
    gone: dict[int, tuple[int, float]] = {}
    for late, early, offset in pairs.tolist():
        if late in gone or early in gone or (early < clips.guards and not clips.guarded(early, late)):
            continue
        if early >= clips.guards and not alike(durations[late], durations[early]):
            continue
        rate = compare(prints[late], prints[early], offset, max if early >= clips.guards else min)
        if rate <= WRONG:
            gone[late] = early, rate
    return [(late, early, rate) for late, (early, rate) in gone.items()]


def alike(one: float, other: float) -> bool:
    """Whether the shorter duration is most of the longer one; a fingerprint ends after two minutes."""
    return min(one, other) >= SHARE * max(one, other)


def compare(late: "np.ndarray", early: "np.ndarray", offset: int, of: Callable[[int, int], int] = max) -> float:
    """The share of wrong bits at the best alignment near `offset`; 1 if they overlap too little to tell.

    They must overlap by most of the longer one, or `of` the shorter one.
    """
    from pipelines.fingerprint import wrong_bits

    tried = [wrong_bits(late, early, offset + slip) for slip in (-1, 0, 1)]
    least = SHARE * of(len(late), len(early))
    return min((rate for rate, heard, overlap in tried if heard >= SOUNDING and overlap >= least), default=1.0)


@dataclass(frozen=True)
class Prints:
    """The fingerprints of all clips, in the order of the clips; they lie in a file, in words of four bytes."""

    words: IO[bytes]
    first: "np.ndarray"
    frames: "np.ndarray"

    def __getitem__(self, clip: int) -> "np.ndarray":
        import numpy as np

        return np.frombuffer(os.pread(self.words.fileno(), 4 * self.frames[clip], 4 * self.first[clip]), "<u4")

    def anchors(self) -> "Anchors":
        """Those of every clip, block by block."""
        import numpy as np

        from pipelines.fingerprint import Anchors, anchors

        blocks = np.cumsum(self.frames) // BLOCK
        found = []
        for block in np.unique(blocks):
            chosen = np.flatnonzero(blocks == block)
            lengths = self.frames[chosen]
            clip = np.repeat(chosen, lengths).astype(np.uint32)
            frame = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            found.append(
                anchors(np.concatenate([self[each] for each in chosen.tolist()]), clip, frame.astype(np.uint16))
            )
        return Anchors(*(np.concatenate(column, axis=-1) for column in zip(*found, strict=True)))
