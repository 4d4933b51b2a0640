"""What a clip was cut from: "freesound:<id>", "youtube:<id>", "youtube:<id>#<start>-<end>" in seconds.

Corpora cut their clips from the same few sites under names of their own. Two clips of one recording are known by it,
whatever corpus they came by.
"""

import re
from math import inf
from urllib.parse import unquote

from pipelines.clip import Clip
from pipelines.sources.folder import AUDIO
from pipelines.sources.table import section

FREESOUND = re.compile(
    r"freesound\.org/(?:(?:people/[^/]+/sounds|apiv2/sounds|s|sounds|embed/sound/iframe)/|samplesViewSingle\.php\?id="
    r"|(?:data/)?(?:previews|displays)/\d+/)(\d+)"
)
YOUTUBE = re.compile(
    r"(?:youtu\.be/|youtube(?:-nocookie)?\.com/(?:watch\?(?:[^#\s]*&)?v=|embed/|shorts/|live/|v/))([\w-]{11})(?![\w-])",
    re.ASCII,
)
# File names of corpora. A video's id ends in one of 16 signs, and mixes cases: "Yellow_birds" is none.
NAMES = (
    ("freesound", re.compile(r"[1-5]-(\d+)-[A-Z]-\d{1,2}", re.ASCII)),  # ESC-50: 1-100032-A-0
    ("freesound", re.compile(r"[1-5]-(\d{4,7})-[A-Z]", re.ASCII)),  # ESC-10 and ESC-50 at first: 1-100032-A
    ("freesound", re.compile(r"(?!(?:19|20)\d\d-)(\d+)-\d-\d+-\d+", re.ASCII)),  # UrbanSound8K: 100032-3-0-0, no date
    ("freesound", re.compile(r"(\d+)__.+?__.+", re.ASCII | re.DOTALL)),  # Freesound: 100032__nfrae__rose_bark
    ("youtube", re.compile(r"Y(?=.*[A-Z].*)(?=.*[a-z0-9].*)([\w-]{10}[AEIMQUYcgkosw048])", re.ASCII)),  # Y<id>
)


def recording_of(clip: Clip) -> str:
    """The recording of a clip, also where its source does not say: told by its page, its address or its file's name.

    "" if nobody can tell. A page of YouTube without the clip's section stands for the whole video.
    """
    if clip.recording:
        return clip.recording
    for address in (clip.url, clip.location):
        if "freesound" in address and (found := FREESOUND.search(address)):
            return f"freesound:{int(found[1])}"
        if "youtu" in address and (found := YOUTUBE.search(address)):
            return f"youtube:{found[1]}{section(clip.start, clip.end)}"
    return named(file_stem(clip.location)) or named(stem(clip.title))


def named(name: str) -> str:
    """The recording after which a corpus names its file; "" for any other name."""
    if not name or not (name[0].isdigit() or name[0] == "Y"):  # nearly every name
        return ""
    for site, pattern in NAMES:
        if found := pattern.fullmatch(name):
            return f"{site}:{int(found[1]) if site == 'freesound' else found[1]}"
    return ""


def parse(recording: str) -> tuple[str, float, float]:
    """("youtube:<id>", start, end) of a recording; from 0 to infinity where it does not say."""
    whole, mark, section = recording.partition("#")
    if not mark:
        return whole, 0.0, inf
    start, _, end = section.partition("-")
    try:
        return whole, float(start or 0), float(end or inf)
    except ValueError:  # a mark of another kind
        return whole, 0.0, inf


def file_stem(location: str) -> str:
    """The name of the file or archive member that a location leads to, without its audio extension; "" for a page."""
    name = location if location.startswith("file:") else location.partition("?")[0].partition("#")[0]
    name = name.rpartition("/")[2].rpartition("#")[2]
    return stem(unquote(name) if "%" in name else name)


def stem(name: str) -> str:
    """A name without its audio extension: "blues.00001.wav" and "blues.00001" are the same."""
    head, dot, suffix = name.rpartition(".")
    return head if dot and f".{suffix.lower()}" in AUDIO else name
