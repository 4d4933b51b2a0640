"""What a dataset must not hold: the recordings, file names and audio of the corpora that models are evaluated on.

Every list is what the corpus's own source reads. All of them are written once into OUT/build/evaluation.parquet, a row
for each recording, distinctive file name and audio file; the stages load it once a process. Exclude compares what is
known before a byte is fetched, Dedup the sounds where a corpus's audio is at hand.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.clip import Clip, Rejected
from pipelines.disk import BuildError, atomic, remove
from pipelines.local import local_path
from pipelines.recipe import fingerprint
from pipelines.recording import file_stem, parse, recording_of
from pipelines.sources import SOURCES, Reading, read_card, source

if TYPE_CHECKING:
    import pyarrow as pa

HELP = (
    "leave out what these evaluation corpora hold: esc50, clotho=FOLDER or =LIST, ... (else the folder of that name "
    "beside --input), by recording and file name, with a FOLDER of audio by sound too. Only validation and test count, "
    "with NAME:all every split; of corpora with folds everything does"
)
FILE = "evaluation.parquet"
DISTINCTIVE = 6  # characters of a file name, from which on it can tell a clip
HELD_OUT = ("validation", "test")  # splits that no other list may thin
WAYS = ("recording", "same file name", "same bytes", "same samples", "sounds like")  # how a detail begins


class Row(NamedTuple):
    """What a clip of an evaluation corpus is known by: its recording, its file (the stem) or its audio (the place)."""

    evaluation: str
    clip: str
    kind: str
    value: str
    start: float | None = None  # s, of the recording or the audio
    end: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """A corpus to keep out: its name, whether all its splits count, and its folder or published list."""

    name: str
    whole: bool
    path: Path

    @property
    def flag(self) -> str:
        """What names it on the command line, without its place."""
        return f"{self.name}:all" if self.whole else self.name

    def rows(self) -> Iterator[Row]:
        """All by which its clips are known; raises BuildError if the corpus cannot be read."""
        heard = self.path.is_dir()
        for clip in source(self.name).clips(self.path, Reading()):
            if clip.split == "train" and not clip.fold and not self.whole:
                continue
            if recording := recording_of(clip):
                yield Row(self.name, clip.id, "recording", *parse(recording))
            if clip.location.startswith("file:") and distinctive(name := file_stem(clip.location).casefold()):
                yield Row(self.name, clip.id, "file", name)
            if heard and is_here(clip.location):
                yield Row(self.name, clip.id, "audio", clip.location, clip.start, clip.end)


@dataclass(frozen=True)
class Lists:
    """The lists of a build: `known` and `heard` name them with a digest of what stages compare by ids and by sound.

    They stand in the recipe, so that only what they change is redone. `table` is None where the file holds them.
    """

    path: Path
    known: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()
    table: "pa.Table | None" = field(default=None, repr=False)

    def write(self) -> None:
        """Write the lists unless that is done; what was made of other ones goes first."""
        import pyarrow.parquet as pq

        if self.known and self.table is None:
            return
        remove(work_path(self.path))
        if self.table is None or read_note(self.path).get("states") != note_of(self.table.schema)["states"]:
            prints_path(self.path).unlink(missing_ok=True)  # those of the same audio in another place hold
            self.path.unlink(missing_ok=True)
        if self.table is not None:
            with atomic(self.path) as temporary:
                pq.write_table(self.table, temporary, compression="zstd")


def bind(stages: Sequence[Any], root: Path | None, build: Path, usual: Sequence[str] = ()) -> tuple[list[Any], Lists]:
    """The stages with the evaluation lists that they name, and the lists, to be written once the build begins.

    Corpora are looked for below `root`; where no stage names one, the `usual` ones are meant. Raises BuildError,
    before anything is written, for a corpus that is unknown, not there or not readable.
    """
    texts = next((found for stage in stages if (found := getattr(stage, "exclude_evaluation", ()))), usual)
    lists = read_lists(list(dict.fromkeys(evaluation(text, root, build) for text in texts)), build / FILE)
    if not any(stage.packs for stage in stages):  # a build without audio has nothing to be heard
        lists = replace(lists, heard=())
    return [stage.bound(lists) if hasattr(stage, "bound") else stage for stage in stages], lists


def evaluation(text: str, root: Path | None, build: Path) -> Evaluation:
    """The corpus behind NAME, NAME:all, NAME=METADATA or NAME:all=METADATA."""
    name, place = text.partition("=")[::2]
    name, splits = name.partition(":")[::2]
    if name not in SOURCES or not read_card(name).get("evaluation"):
        raise BuildError(
            f"--exclude-evaluation {text}: {name!r} is no evaluation corpus. Choose one whose datacard says so, "
            "such as esc50, urbansound8k, gtzan, fsd50k, clotho, audiocaps or vggsound"
        )
    if splits not in ("", "all"):
        raise BuildError(f"--exclude-evaluation {text}: want {name}, or {name}:all for its training split too")
    if not place and root is None:
        raise BuildError(f"--exclude-evaluation {text}: with an --input that is a URL say where: {name}=FOLDER")
    path = Path(place).absolute() if place or root is None else root / name
    if not path.exists():
        obtain = read_card(name)["obtain"]
        raise BuildError(f"--exclude-evaluation {text}: there is no {path}. Say where with {name}=FOLDER; {obtain}")
    if build.resolve().is_relative_to(path.resolve()):
        raise BuildError(f"--out {build.parent} lies in the evaluation corpus {path}: choose a folder outside it")
    return Evaluation(name, splits == "all", path)


def read_lists(evaluations: Sequence[Evaluation], path: Path) -> Lists:
    """The lists of these corpora: as the file has them if no corpus has changed since, else read anew."""
    import pyarrow as pa

    if not evaluations:
        return Lists(path)
    states = [f"{each.flag} {fingerprint(each.path)}" for each in evaluations]
    heard = tuple(state for each, state in zip(evaluations, states, strict=True) if each.path.is_dir())
    places = [str(each.path) for each in evaluations]  # the rows of audio hold them, the recipe does not
    noted = read_note(path)
    if noted.get("states") == states and noted.get("places") == places:
        return Lists(path, tuple(noted["known"]), heard)
    found: list[Row] = []
    known = []
    for each in evaluations:
        rows = list(each.rows())
        if not rows:
            raise BuildError(f"--exclude-evaluation {each.flag}: {each.path} holds nothing to compare with")
        known.append(f"{each.flag} {digest(rows)}")
        found += rows
    columns = dict(zip(Row._fields, map(list, zip(*dict.fromkeys(found), strict=True)), strict=True))
    note = {"lists": json.dumps({"states": states, "places": places, "known": known})}
    return Lists(path, tuple(known), heard, pa.table(columns, schema=schema()).replace_schema_metadata(note))


def schema() -> "pa.Schema":
    """Columns of the lists: those of Row."""
    import pyarrow as pa

    times = {"start": pa.float64(), "end": pa.float64()}
    return pa.schema([(name, times.get(name, pa.string())) for name in Row._fields])


def read_note(path: Path) -> dict[str, Any]:
    """What the file of the lists notes of the corpora that it was read from; empty if there is none."""
    import pyarrow.parquet as pq

    return note_of(pq.read_schema(path)) if path.exists() else {}


def note_of(schema: "pa.Schema") -> dict[str, Any]:
    """What a table of the lists notes of the corpora that it was read from."""
    return json.loads((schema.metadata or {}).get(b"lists", b"{}"))


def digest(rows: Iterable[Row]) -> str:
    """Of what is known of a list's clips without their audio, whose places say nothing."""
    found = hashlib.sha256()
    for row in rows:
        if row.kind != "audio":
            found.update(repr(tuple(row)).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def prints_path(lists: Path) -> Path:
    """Where the fingerprints of the lists' audio are."""
    return lists.with_name("evaluation-prints.parquet")


def work_path(lists: Path) -> Path:
    """Where the parts of the fingerprints are while they are made."""
    return lists.with_name("evaluation")


def distinctive(name: str) -> bool:
    """Whether a file name can tell a clip: "64760" and "thunder" can be anybody's, "1-100032-a" and "red car" not."""
    return len(name) >= DISTINCTIVE and not name.isdecimal() and not name.isalpha()


def is_here(location: str) -> bool:
    """Whether a location is of a file, or of an archive, that is on this machine."""
    try:
        return local_path(location).is_file()
    except (Rejected, OSError):
        return False


class Held(NamedTuple):
    """A section of a recording, in seconds, or the file, that a clip of an evaluation corpus holds."""

    evaluation: str
    clip: str
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class Index:
    """The lists in memory, by recording and by file name; `clips` are the ids of each list's own clips."""

    recordings: dict[str, list[Held]]
    names: dict[str, list[Held]]
    clips: dict[str, set[str]]
    sites: dict[str, str]  # of each clip whose recording is known

    def overlap(self, clip: Clip) -> str:
        """Which evaluation clip a clip overlaps, and why; "" if none.

        No list speaks against its own clips, and none against what another one holds out: a published validation or
        test split stays whole.
        """
        if clip.split in HELD_OUT and self.owns(clip.source, clip):
            return ""
        if clip.recording:
            key, start, end = parse(clip.recording)
            for held in self.recordings.get(key, ()):
                if start < held.end and held.start < end and not self.owns(held.evaluation, clip):
                    return f"recording {clip.recording} {'is' if key == clip.recording else 'overlaps'} {held.clip}"
        site = clip.recording.partition(":")[0]
        for held in self.names.get(file_stem(clip.location).casefold(), ()):
            told_apart = site and site == self.sites.get(held.clip)  # by their ids, which count for more
            if not told_apart and not self.owns(held.evaluation, clip):
                return f"same file name as {held.clip}"
        return ""

    def owns(self, name: str, clip: Clip) -> bool:
        """Whether a clip is on that list itself."""
        return clip.source == name and clip.id in self.clips.get(name, ())


@lru_cache(maxsize=2)
def read_index(path: Path, known: tuple[str, ...]) -> Index:
    """The lists for looking up, read once a process; `known` tells one file of that name from the next."""
    import pyarrow.parquet as pq

    index = Index({}, {}, {}, {})
    for batch in pq.ParquetFile(path).iter_batches():
        for row in map(Row._make, zip(*(column.to_pylist() for column in batch.columns), strict=True)):
            index.clips.setdefault(row.evaluation, set()).add(row.clip)
            if row.kind == "recording":
                held = Held(row.evaluation, row.clip, row.start or 0.0, row.end or 0.0)
                index.recordings.setdefault(row.value, []).append(held)
                index.sites[row.clip] = row.value.partition(":")[0]
            elif row.kind == "file":
                index.names.setdefault(row.value, []).append(Held(row.evaluation, row.clip))
    return index


def contamination(build: Path) -> list[dict[str, Any]]:
    """For the card and the report: what each list compared, and the rows that it removed, by the way they were told.

    [{"name": "esc50", "splits": "all", "compared": {"clips": 2000, "recordings": 1800, "file names": 2000,
    "audio": 2000}, "removed": {"recording": 3, "sounds like": 1}}]; a list of ids given as a file is named "ids".
    """
    recipe = json.loads((build / "recipe.json").read_text(encoding="utf-8"))["stages"]
    settings = recipe.get("exclude", {})
    flags = [text.split()[0] for text in settings.get("exclude_evaluation", ())]
    names = list(dict.fromkeys(flag.split(":")[0] for flag in flags))
    compared, removed = count_compared(build), count_removed(build, names)
    found = []
    for name in names:
        splits = "all" if f"{name}:all" in flags else "validation and test; all of a corpus with folds"
        found.append({"name": name, "splits": splits, "compared": compared.get(name, {}), "removed": removed[name]})
    if ids := settings.get("exclude_ids"):
        found.append({"name": "ids", "splits": "", "compared": {"ids": len(ids)}, "removed": removed["ids"]})
    return found


def count_compared(build: Path) -> dict[str, dict[str, int]]:
    """{list: {"clips", "recordings", "file names", "audio": how many}}; audio counts if it could be decoded."""
    import pyarrow.parquet as pq

    if not (build / FILE).exists():
        return {}
    seen: dict[str, dict[str, set[str]]] = {}
    names = {"recording": "recordings", "file": "file names"}
    for batch in pq.ParquetFile(build / FILE).iter_batches(columns=["evaluation", "clip", "kind", "value"]):
        for name, clip, kind, value in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            kinds = seen.setdefault(name, {"clips": set(), "recordings": set(), "file names": set(), "audio": set()})
            kinds["clips"].add(clip)
            if kind in names:
                kinds[names[kind]].add(value)
    if (prints := prints_path(build / FILE)).exists():
        heard = pq.read_table(prints, columns=["source", "id", "reason"]).to_pylist()
        for row in heard:
            if not row["reason"]:
                seen[row["source"]]["audio"].add(row["id"])
    return {name: {kind: len(values) for kind, values in kinds.items()} for name, kinds in seen.items()}


def count_removed(build: Path, names: list[str]) -> dict[str, Counter[str]]:
    """{list, or "ids": {way: rows}} of the rows that were rejected as `evaluation-overlap`."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    listed = "|".join(map(re.escape, names)) or "(?!)"
    told = re.compile(rf"({'|'.join(WAYS)})(?: as| \S+ is| \S+ overlaps)? ({listed})/")
    removed: dict[str, Counter[str]] = {name: Counter() for name in (*names, "ids")}
    for stage in ("exclude", "dedup"):
        for path in sorted((build / stage).glob("part-*.parquet")):
            table = pq.read_table(path, columns=["stage", "reason", "detail"])
            mine = pc.and_(pc.equal(table["stage"], stage), pc.equal(table["reason"], "evaluation-overlap"))
            for detail in table.filter(mine)["detail"].to_pylist():
                found = told.search(detail)
                removed[found[2] if found else "ids"][found[1] if found else "id"] += 1
    return removed
