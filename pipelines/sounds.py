"""Synthetic sounds: each is computed from a few parameters and named truthfully by the same parameters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.floating]  # (n_samples,)
Range = tuple[float, float]

NUMBERS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ADVERB = {"slow": "slowly", "fast": "quickly"}
BACKGROUND_DB = -10.0  # RMS of what lies in the background of a mixture, relative to what lies in front


@dataclass(frozen=True)
class Sound:
    """A waveform in any scale, and two noun phrases that are both true of it."""

    wave: Wave
    phrases: tuple[str, str]


@dataclass(frozen=True)
class Take:
    """The room that a sound has to fill: random numbers, sample rate in Hz, length in seconds."""

    rng: np.random.Generator
    rate: int
    seconds: float

    @property
    def n_samples(self) -> int:
        return round(self.rate * self.seconds)

    @property
    def time(self) -> Wave:
        return np.arange(self.n_samples) / self.rate

    def part(self, seconds: float) -> "Take":
        return replace(self, seconds=min(seconds, self.seconds))

    def pick(self, **ranges: Range) -> tuple[str, float]:
        """One of the words, and a value drawn from the range that the word stands for."""
        word = str(self.rng.choice(list(ranges)))
        return word, self.rng.uniform(*ranges[word])

    def speed(self, slow: Range, fast: Range) -> tuple[str, float]:
        """As `pick`, but under 3 s always fast: too little is heard there to be called slow."""
        return self.pick(slow=slow, fast=fast) if self.seconds >= 3 else self.pick(fast=fast)

    def beat(self, slow: Range, fast: Range) -> tuple[str, Wave]:
        """Times in s of a regular beat; the ranges are in beats per second."""
        word, rate = self.speed(slow, fast)
        return word, np.arange(0.02, self.seconds - 0.05, 1 / rate)

    def few(self, gap: float, noun: str) -> tuple[str, Wave]:
        """One to four times in s, at least a gap apart, and that number of the noun in words."""
        count = int(self.rng.integers(1, min(4, max(1, int(self.seconds / gap))) + 1))
        return f"{NUMBERS[count]} {noun}{'s' * (count > 1)}", 0.02 + np.arange(count) * self.seconds / count

    def sine(self, hertz: float | Wave) -> Wave:
        """A sine whose frequency may change from one amplitude to the next."""
        return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(hertz, self.n_samples)) / self.rate)

    def noise(self, low: float, high: float) -> Wave:
        """Gaussian noise between two frequencies in Hz, with soft edges and peak 1."""
        spectrum = np.fft.rfft(self.rng.standard_normal(self.n_samples))
        hertz = np.fft.rfftfreq(self.n_samples, 1 / self.rate)
        passed = 1 / (1 + (low / np.maximum(hertz, 1)) ** 8) / (1 + (hertz / high) ** 8)
        return peak_1(np.fft.irfft(spectrum * passed, self.n_samples))

    def place(self, hit: Wave, times: Wave, levels: float | Wave = 1.0) -> Wave:
        """The same short sound at several times (s), cut where the take ends."""
        wave = np.zeros(self.n_samples + len(hit))
        starts = np.minimum((times * self.rate).astype(int), self.n_samples)
        for start, level in zip(starts, np.broadcast_to(levels, times.shape), strict=True):
            wave[start : start + len(hit)] += level * hit
        return wave[: self.n_samples]


def peak_1(wave: Wave) -> Wave:
    return wave / np.abs(wave).max()


def rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(wave**2)))


def fade(wave: Wave, rate: int, seconds: float = 0.01) -> Wave:
    """The wave without the clicks that a sudden start and end would add."""
    index = np.arange(len(wave))
    return wave * np.minimum(1, np.minimum(index, index[::-1]) / (seconds * rate))


def tone(take: Take) -> Sound:
    pitch, hertz = take.pick(low=(110, 250), middle=(500, 900), high=(2000, 4000))
    motion = str(take.rng.choice(["steady", "wavering", "fading"]))
    tremolo = 0.6 + 0.4 * np.cos(2 * np.pi * 6 * take.time)
    level = {"steady": 1.0, "wavering": tremolo, "fading": (1 - take.time / take.seconds) ** 2}[motion]
    phrases = f"a {motion} tone of {pitch} pitch", f"a pure, {motion} note in the {pitch} register"
    return Sound(level * take.sine(hertz), phrases)


def sweep(take: Take, name: str, path: str) -> Sound:
    speed, longest = take.speed(slow=(2, 6), fast=(0.4, 1.2))
    count = max(1, int(take.seconds / longest) + (speed == "fast"))
    glide = take.part(take.seconds / count)
    ends = take.rng.uniform(120, 300), take.rng.uniform(2500, 5000)
    hertz = np.geomspace(*(ends if name == "rising" else ends[::-1]), glide.n_samples)
    wave = take.place(fade(glide.sine(hertz), take.rate), np.arange(count) * glide.seconds)
    number = NUMBERS[count] if count < 5 else "many"
    again = " again and again" if count > 1 else ""
    sentence = f"a tone that glides {ADVERB[speed]} from {path} pitch{again}"
    return Sound(wave, (f"{number} {speed}, {name} sweep{'s' * (count > 1)}", sentence))


def siren(take: Take) -> Sound:
    pitch, centre = take.pick(low=(350, 450), high=(1100, 1400))
    speed, period = take.speed(slow=(2, 3), fast=(0.4, 0.7))
    bend = -0.5 * np.cos(2 * np.pi * take.time / period)  # in octaves
    style, motion = "wailing", "that rises and falls"
    if take.rng.random() < 0.5:
        bend, style, motion = 0.2 * np.sign(bend), "two-tone", "that switches between two notes"
    hertz = centre * 2**bend
    wave = np.sum([take.sine(k * hertz) / k**1.5 for k in (1, 2, 3)], axis=0)
    phrases = f"a {speed}, {style} siren of {pitch} pitch", f"a {pitch} siren {motion} {ADVERB[speed]}"
    return Sound(wave, phrases)


def clicks(take: Take) -> Sound:
    colour, hertz = take.pick(dull=(500, 800), bright=(3500, 5000))
    speed, times = take.beat(slow=(1, 1.8), fast=(5, 9))
    hit = take.part(0.05)
    wave = take.place(hit.sine(hertz) * np.exp(-hit.time / 0.005), times)
    return Sound(wave, (f"{speed}, {colour} clicks", f"the {colour} ticking of a {speed} metronome"))


def burst(take: Take) -> Sound:
    kind, low, high = (("hissing", 3000, 7000), ("rumbling", 40, 200))[take.rng.integers(2)]
    lengths = {"short": (0.1, 0.2)} | ({"long": (0.8, 1.2)} if take.seconds >= 1.5 else {})
    length, seconds = take.pick(**lengths)
    number, times = take.few(seconds + 0.3, "burst")
    hit = take.part(seconds)
    wave = take.place(fade(hit.noise(low, high), take.rate), times)
    number, noun = number.split()
    name = f"{length} {noun}"
    return Sound(wave, (f"{number} {name} of {kind} noise", f"{kind} noise in {number} {name}"))


def rain(take: Take) -> Sound:
    weight, density = take.pick(light=(15, 30), heavy=(400, 600))  # drops per second
    trend, slope = (("stays even", 0), ("grows louder", 1), ("dies away", -1))[take.rng.integers(3)]
    hit = take.part(0.02)
    drop = hit.sine(take.rng.uniform(3000, 5000)) * np.exp(-hit.time / 0.002)
    count = round(density * take.seconds)
    drops = take.place(drop, take.rng.uniform(0, take.seconds, count), take.rng.uniform(0.2, 1, count))
    hiss = take.noise(1000, 7000) * {"light": 0.05, "heavy": 0.8}[weight]
    level = 10 ** (slope * 0.9 * (take.time / take.seconds - 0.5))  # 18 dB from one end to the other
    name = {"light": "a thin patter of rain", "heavy": "a dense rush of rain"}[weight]
    return Sound((drops + hiss) * level, (f"{weight} rain that {trend}", f"{name} that {trend}"))


def engine(take: Take) -> Sound:
    first, last, one, other = (
        (24, 24, "an engine idling slowly", "the low, even rumble of an idling engine"),
        (110, 110, "an engine running fast", "the even drone of an engine at high speed"),
        (25, 110, "an engine speeding up", "an engine that starts low and revs higher"),
        (110, 25, "an engine slowing down", "an engine that starts fast and slows"),
    )[take.rng.integers(4)]
    hertz = take.rng.uniform(0.9, 1.1) * np.geomspace(first, last, take.n_samples)
    hiss, addition = ((0.0, ""), (0.15, " with a hiss"))[take.rng.integers(2)]
    harmonics = np.sum([take.sine(k * hertz) / k**0.7 for k in range(1, 25)], axis=0)
    return Sound(peak_1(harmonics) + hiss * take.noise(2500, 6000), (one + addition, other + addition))


def birds(take: Take) -> Sound:
    pitch, hertz = take.pick(high=(2000, 2400), shrill=(4000, 4500))
    speed, times = take.beat(slow=(1, 1.8), fast=(5, 8))
    direction = ("rising", "falling")[take.rng.integers(2)]
    hit = take.part(0.1)
    path = hertz * np.geomspace(1, 1.5, hit.n_samples)[:: 1 if direction == "rising" else -1]
    wave = take.place(fade(hit.sine(path), take.rate, 0.03), times)
    song = f"{pitch} chirping like a bird in {speed}, {direction} notes"
    return Sound(wave, (f"{speed}, {pitch}, {direction} bird-like chirps", song))


def bell(take: Take) -> Sound:
    pitch, hertz = take.pick(low=(220, 320), high=(1000, 1400))
    strokes, times = take.few(0.8, "stroke")
    hit = take.part(3.0)
    partials = (
        (0.5, 0.3),
        (1, 1),
        (1.2, 0.6),
        (1.5, 0.4),
        (2, 0.5),
        (2.66, 0.3),
    )  # ratio to the pitch, level
    stroke = np.sum([a * hit.sine(r * hertz) * np.exp(-hit.time * (1 + r)) for r, a in partials], axis=0)
    wave = take.place(fade(stroke, take.rate, 0.002), times)
    return Sound(wave, (f"{strokes} of a {pitch} bell", f"a bell of {pitch} pitch ringing with {strokes}"))


def drum(take: Take) -> Sound:
    pitch, hertz = take.pick(deep=(60, 80), high=(250, 350))
    speed, times = take.beat(slow=(1, 1.6), fast=(4, 6))
    hit = take.part(0.25)
    skin = hit.sine(hertz * (1 + np.exp(-hit.time / 0.02))) * np.exp(-hit.time / 0.04)
    wave = take.place(fade(skin, take.rate, 0.002), times)
    return Sound(wave, (f"a {speed} beat on a {pitch} drum", f"a {pitch} drum beaten {ADVERB[speed]}"))


def beeps(take: Take) -> Sound:
    pitch, hertz = take.pick(low=(400, 550), high=(2000, 3000))
    speed, times = take.beat(slow=(0.8, 1.4), fast=(4, 6))
    hit = take.part({"slow": 0.3, "fast": 0.1}[speed])
    wave = take.place(fade(hit.sine(hertz) + hit.sine(2 * hertz) / 5, take.rate), times)
    alarm = f"an alarm of {pitch} pitch that beeps {ADVERB[speed]}"
    return Sound(wave, (f"{speed}, {pitch} alarm beeps", alarm))


def wind(take: Take) -> Sound:
    kind, low, high = (("roaring", 60, 300), ("whistling", 900, 1100))[take.rng.integers(2)]
    wave, motion, manner = take.noise(low, high), "steady", "without a pause"
    if take.seconds >= 3 and take.rng.random() < 0.5:
        gusts = 0.55 - 0.45 * np.cos(2 * np.pi * take.time * take.rng.uniform(0.4, 0.7))
        wave, motion, manner = wave * gusts, "gusting", "in gusts"
    return Sound(wave, (f"a {motion}, {kind} wind", f"wind {kind} {manner}"))


def over(front: Sound, back: Sound) -> Sound:
    """Both at once, the second quieter by BACKGROUND_DB in RMS."""
    wave = front.wave / rms(front.wave) + 10 ** (BACKGROUND_DB / 20) * back.wave / rms(back.wave)
    (one, other), (below, behind) = front.phrases, back.phrases
    return Sound(wave, (f"{one} over {below}", f"{other} with {behind} in the background"))


def then(first: Sound, second: Sound) -> Sound:
    """One after the other, with the same peak."""
    (one, other), (after, later) = first.phrases, second.phrases
    wave = np.concatenate([peak_1(first.wave), peak_1(second.wave)])
    return Sound(wave, (f"{one}, followed by {after}", f"{other}, then {later}"))


EVENTS: dict[str, Callable[[Take], Sound]] = {
    "tone": tone,
    "rising sweep": partial(sweep, name="rising", path="low to high"),
    "falling sweep": partial(sweep, name="falling", path="high to low"),
    "siren": siren,
    "clicks": clicks,
    "noise burst": burst,
    "rain": rain,
    "engine": engine,
    "bird-like chirps": birds,
    "bell": bell,
    "drum beat": drum,
    "alarm beeps": beeps,
    "wind": wind,
}
MIXTURES: dict[str, tuple[str, Callable[[Sound, Sound], Sound], str]] = {
    "siren over rain": ("siren", over, "rain"),
    "bird-like chirps over wind": ("bird-like chirps", over, "wind"),
    "alarm beeps over an engine": ("alarm beeps", over, "engine"),
    "clicks followed by a bell": ("clicks", then, "bell"),
    "rain followed by a drum beat": ("rain", then, "drum beat"),
    "tone followed by a noise burst": ("tone", then, "noise burst"),
    "bell followed by a rising sweep": ("bell", then, "rising sweep"),
}


def play(take: Take, event: str) -> Sound:
    sound = EVENTS[event](take)
    return replace(sound, wave=fade(sound.wave, take.rate))


def perform(take: Take, label: str) -> Sound:
    """The sound of one label, whether an event or a mixture of two."""
    if label in EVENTS:
        return play(take, label)
    first, mix, second = MIXTURES[label]
    part = take if mix is over else take.part(take.seconds / 2)
    return mix(play(part, first), play(part, second))
