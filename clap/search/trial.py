"""Texts that an inverted file is tried with, for sounds without captions are searched by texts all the same."""

import re
from typing import TYPE_CHECKING

import numpy as np

from clap.search.vectors import QUESTIONS

if TYPE_CHECKING:
    import pyarrow as pa

SENTENCES = (
    "A dog barks in the distance.", "A cat meows.", "Birds sing at dawn.", "A cow moos.", "Crickets chirp at night.",
    "A rooster crows.", "A horse trots on a road.", "Frogs croak.", "Heavy rain on a roof.", "Thunder and wind.",
    "Waves break on a beach.", "A stream runs over stones.", "A fire crackles.", "A man speaks.", "A woman laughs.",
    "Children play and shout.", "A baby cries.", "A crowd applauds.", "Someone sneezes.", "Footsteps on gravel.",
    "A door creaks and slams.", "Someone knocks on wood.", "Glass breaks.", "A clock ticks.", "A telephone rings.",
    "Someone types on a keyboard.", "Water pours into a glass.", "A vacuum cleaner hums.", "A car drives past.",
    "A siren comes nearer.", "A train passes with its horn.", "An aeroplane flies over.", "A helicopter hovers.",
    "A motorcycle starts.", "A chainsaw cuts wood.", "Hammering and drilling.", "Church bells ring.", "A gunshot.",
    "Fireworks explode.", "A low electronic hum.", "White noise.", "A short beep.", "A piano plays a slow melody.",
    "An acoustic guitar.", "Drums with a fast beat.", "A violin and a cello.", "Loud rock music.", "A choir sings.",
)  # fmt: skip


def texts(rows: "pa.Table", rng: np.random.Generator) -> list[str]:
    """The captions of QUESTIONS clips drawn by `rng`, where they have none their titles, and SENTENCES, each once."""
    drawn = rows.take(np.sort(rng.choice(len(rows), min(len(rows), QUESTIONS), replace=False)))
    captions = [captions[0] for captions in drawn["captions"].to_pylist() if captions]
    titles = [re.sub(r"[\W_]+", " ", title).strip() for title in drawn["title"].to_pylist()]
    return list(dict.fromkeys([*(captions or filter(None, titles)), *SENTENCES]))
