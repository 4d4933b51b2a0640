"""A labelled corpus of short synthetic sounds, so that everything can be tried with no download.

Every sound is computed from a few parameters, and its captions are worded from the same parameters: they say
nothing that is not in the signal. The files differ in container, codec, sample rate, channels and length, as
collected audio does. Eight more rows of metadata.csv are broken on purpose, each for its own reason (the keys
of BROKEN): a file without a byte (`empty`), text named .wav (`not-audio`), a header that promises ten times
what follows (`truncated`), digital silence (`silent`), 0.02 s (`too-short`), 8 kHz (`low-sample-rate`), a
file that is not there (`missing-file`), a sound without caption, label or tag (`no-caption`).
"""

import csv
from pathlib import Path

import numpy as np

from pipelines.sounds import EVENTS, MIXTURES, NUMBERS, Sound, Take, Wave, peak_1, perform

FORMATS = (  # file suffix, codec, sample rates in Hz
    ("wav", "pcm_s16le", (16000, 22050, 44100)),
    ("wav", "pcm_s24le", (48000, 96000)),
    ("wav", "pcm_f32le", (32000, 48000)),
    ("flac", "flac", (44100, 48000, 96000)),
    ("ogg", "libopus", (24000, 48000)),
    ("mp3", "libmp3lame", (22050, 44100)),
    ("m4a", "aac", (32000, 44100)),
    ("webm", "libopus", (48000,)),
)
AAC = {"aac_coder": "fast", "b": "256000"}  # the default coder adds up to 13 dB of peak to a pure sweep
# 70 / 10 / 20 per cent of ten clips of a label, interleaved so that six of them have all three already
SPLITS = ("train", "train", "test", "train", "train", "validation", "train", "test", "train", "train")
BROKEN = {  # the reason that a build has to give: file, caption
    "empty": ("broken/empty.wav", "A file without a single byte."),
    "not-audio": ("broken/text.wav", "A text file with the name of a sound."),
    "truncated": ("broken/truncated.wav", "The first second of a steady, low tone."),
    "silent": ("broken/silent.wav", "Digital silence."),
    "too-short": ("broken/short.wav", "A low tone that ends as soon as it starts."),
    "low-sample-rate": ("broken/telephone.wav", "A steady, low tone."),
    "missing-file": ("broken/missing.wav", "A file that is not there."),
    "no-caption": ("broken/nameless.wav", ""),
}


def caption(take: Take, sound: Sound) -> list[str]:
    """One to three sentences, each worded differently."""
    count = round(take.seconds)
    length = NUMBERS[count] if count < len(NUMBERS) else str(count)
    clip = f"About {length} seconds of {{}}." if take.seconds >= 2 else "A short clip of {}."
    templates = take.rng.permutation(["{}.", "The sound of {}.", "{} can be heard.", clip])
    phrases = take.rng.permutation(sound.phrases)
    sentences = [str(templates[k]).format(phrases[k % 2]) for k in range(take.rng.integers(1, 4))]
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def write(path: Path, channels: Wave, codec: str, rate: int) -> None:
    """Write (channels, n_samples) in -1..1; "bitexact" keeps clocks and random numbers out of the file."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
        layout, options = ("mono", "stereo")[len(channels) - 1], AAC if codec == "aac" else {}
        stream = out.add_stream(codec, rate=rate, layout=layout, options=options)
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        frame = av.AudioFrame.from_ndarray(channels.astype(np.float32), "fltp", layout)
        frame.sample_rate = rate
        out.mux([*stream.encode(frame), *stream.encode(None)])


def row(name: str, captions: list[str], label: str = "", tags: str = "", split: str = "") -> dict[str, str]:
    texts = {f"caption_{k}": text for k, text in enumerate([*captions, "", "", ""][:3], start=1)}
    about = {"title": Path(name).stem.replace("-", " "), "author": "Clapboard demo", "license": "CC0-1.0"}
    return {"file_name": name, **texts, "label": label, "tags": tags, "split": split, **about}


def make_clip(folder: Path, seed: int, index: int) -> dict[str, str]:
    """Write one good clip and return its row; they depend on the seed and the index alone."""
    rng = np.random.default_rng((seed, index))
    labels = [*EVENTS, *MIXTURES]
    label, number = labels[index % len(labels)], index // len(labels)
    suffix, codec, rates = FORMATS[rng.integers(len(FORMATS))]
    shortest, longest = ((0.5, 2), (2, 6), (15, 25))[rng.choice(3, p=(0.12, 0.84, 0.04))]
    seconds = max(rng.uniform(shortest, longest), 3 if label in MIXTURES else 0)
    take = Take(rng, int(rng.choice(rates)), round(seconds, 2))
    sound = perform(take, label)
    peak = 10 ** (rng.uniform(-15, -5) / 20)  # lossy codecs add some
    gains = [[1.0]] if rng.random() < 0.6 else [[1.0], [rng.uniform(0.4, 0.9)]]  # mono, or stereo from the left
    name = label.replace(" ", "-")
    file_name = f"{name}/{name}-{number + 1:02d}.{suffix}"
    write(folder / file_name, peak * np.array(gains) * peak_1(sound.wave), codec, take.rate)
    events = MIXTURES[label][::2] if label in MIXTURES else (label,)
    return row(file_name, caption(take, sound), label, ";".join([*events, "synthetic"]), SPLITS[number % 10])


def break_files(folder: Path) -> list[dict[str, str]]:
    """Write the broken files and return their rows."""
    path = {reason: folder / name for reason, (name, _) in BROKEN.items()}

    def hum(reason: str, seconds: float, rate: int = 48000, level: float = 0.3) -> None:
        wave = level * Take(np.random.default_rng(0), rate, seconds).sine(220.0)
        write(path[reason], wave[None], "pcm_s16le", rate)

    hum("truncated", 10)
    whole = path["truncated"].read_bytes()
    path["truncated"].write_bytes(whole[: len(whole) // 10])
    hum("silent", 3, level=0)
    hum("too-short", 0.02)
    hum("low-sample-rate", 3, rate=8000)
    hum("no-caption", 4)
    path["empty"].write_bytes(b"")
    path["not-audio"].write_text("This is text, whatever its name says.\n", encoding="utf-8")
    return [row(name, [text], split="train") for name, text in BROKEN.values()]


def expected_rejections() -> dict[str, int]:
    """How many rows a build has to reject, by reason."""
    return dict.fromkeys(BROKEN, 1)


def synthesise(folder: Path, clips: int = 320, seed: int = 0) -> None:
    """Write `clips` good sounds, the broken ones, and last metadata.csv in the style of audiofolder.

    Its columns are file_name, caption_1 to caption_3 (some empty), label, tags (separated by ";"), split,
    title, author and license. The files lie in a folder per label. Same clips and seed, same bytes.
    """
    rows = [make_clip(folder, seed, index) for index in range(clips)] + break_files(folder)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
