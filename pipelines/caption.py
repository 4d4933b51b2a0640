"""Give every clip a caption: the published ones, else a sentence made from its labels or tags.

The rule for labels is LAION's: "The sound of A", "The sounds of A, B and C".
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from pipelines.clip import Clip


@dataclass(frozen=True)
class Caption:
    """Fill `captions` where a source published none."""

    packs: ClassVar[bool] = False

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        for clip in clips:
            if clip.captions:
                yield clip
            elif caption := template(clip.labels or clip.tags):
                yield replace(clip, captions=(caption,))
            else:
                yield clip.reject("caption", "no-caption", "no caption, label or tag")


def template(labels: tuple[str, ...]) -> str:
    """A sentence that names the labels, or "" without any: ("dog_bark", "siren") > "The sounds of ..."."""
    names = [label.replace("_", " ").strip() for label in labels if label.strip()]
    if not names:
        return ""
    if len(names) == 1:
        return f"The sound of {names[0]}."
    return f"The sounds of {', '.join(names[:-1])} and {names[-1]}."
