"""Fingerprints of the evaluation corpora's audio, made once a build, by the stages that every clip goes through."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.clip import Clip, read_clips, write_clips
from pipelines.disk import BuildError, remove
from pipelines.download import Download
from pipelines.evaluation import prints_path, work_path
from pipelines.manifest import cut
from pipelines.resample import Resample
from pipelines.run import part_path, run_part

PART_ROWS = 64  # whose bytes lie on disk at once


def write_prints(lists: Path) -> Path:
    """OUT/build/evaluation-prints.parquet: the measured clips of the lists' audio; rejected ones could not be read.

    In this process, one after another: an hour of audio takes about 10 s. Interrupted, it goes on with the part in
    hand; a clip on which the decoder crashed or hung is rejected then. Raises BuildError if audio that was listed is
    not there any more, or if none of a corpus could be read: there would be nothing to compare with.
    """
    path, work = prints_path(lists), work_path(lists)
    if not path.exists():
        groups = list(cut(audio_of(lists), PART_ROWS, None))
        if groups:
            print(f"fingerprinting {sum(map(len, groups)):,} clips of evaluation corpora, once", file=sys.stderr)
        clips = [clip for part, group in enumerate(groups) for clip in measured(work, part, group)]
        if wrong := unheard(clips):
            remove(work)  # to be tried again
            raise BuildError(wrong)
        write_clips(path, clips)
    remove(work)
    return path


def audio_of(lists: Path) -> Iterator[Clip]:
    """The evaluation clips whose audio is on this machine."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(lists)
    for row in table.filter(pc.equal(table["kind"], "audio")).to_pylist():
        yield Clip(row["clip"], row["evaluation"], row["value"], row["start"], row["end"])


def measured(work: Path, part: int, clips: list[Clip]) -> list[Clip]:
    """A part's clips with their hashes, samples and fingerprints, without the bytes that took."""
    if not (path := part_path(work, "manifest", part)).exists():
        write_clips(path, clips)
    stages: list[Any] = [Download(), Resample()]
    run_part(work, "manifest", stages, part)
    done = part_path(work, "resample", part)
    done.with_suffix(".pack").unlink(missing_ok=True)
    return [replace(clip, raw_bytes=0, audio_bytes=0) for clip in read_clips(done)]


def unheard(clips: list[Clip]) -> str:
    """Why these clips cannot stand for the audio of the lists, as a sentence; "" if they can."""
    again = "put it back, or name its corpus without audio (NAME=LIST), then run again"
    if lost := [clip for clip in clips if clip.reason == "missing-file"]:
        return f"{lost[0].location} of {lost[0].source} cannot be read any more ({len(lost)} such files): {again}"
    heard = {clip.source for clip in clips if not clip.reason}
    if mute := next((clip for clip in clips if clip.source not in heard), None):
        return f"no sound of {mute.source} could be read, such as {mute.location} ({mute.reason}): {again}"
    return ""
