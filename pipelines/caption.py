"""Give every clip a caption: the published ones, else a sentence made from its labels or tags.

The rule for labels is LAION's, see pipelines.english.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.english import sound_of


@dataclass(frozen=True)
class Caption:
    """Fill `captions` where a source published none."""

    packs: ClassVar[bool] = False

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        for clip in clips:
            if clip.captions:
                yield clip
            elif caption := sound_of(clip.labels or clip.tags):
                yield replace(clip, captions=(caption,))
            else:
                yield clip.reject("caption", "no-caption", "no caption, label or tag")
