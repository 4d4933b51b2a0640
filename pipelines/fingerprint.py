"""An acoustic fingerprint: what two copies of a recording share whatever their codec, level, rate or start.

    words = np.frombuffer(fingerprint(waveform), "<u4")

One word of 32 bits for every 32 ms: in which of 33 bands the share of energy rises, against its neighbour, over 0.4 s.
After Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System", ISMIR 2002. Theirs moves a long window by
a 32nd of its length, so that a copy cut anywhere still meets nearly the same windows. Here short windows overlap by
half and their powers are averaged over 0.4 s, which costs a sixth of it: the squares of sine windows add up to a
constant, so that the average hardly depends on where the windows begin.

Float rounding can turn a bit whose two sides are equal to the last digits: on another machine the bytes may differ
in such bits. A frame that is all but silent or perfectly steady says nothing, and is written as 0.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

PRINT_RATE = 8_000  # Hz
PRINT_SECONDS = 120  # at most, from the start

HOP = 256  # samples: 32 ms
WINDOW = 2 * HOP
SMOOTH = 13  # frames over which power is averaged (0.4 s, Hann)
LAG = 6  # frames to either side between which a rise is measured
EDGE = LAG + SMOOTH // 2  # frames at either end that cannot be told and are written as 0
BANDS = np.round(np.geomspace(250, 3_600, 34) * WINDOW / PRINT_RATE).astype(int)  # edges of 33 bands, in bins
BLOCK = 32  # frames of one transform: they stay in the cache

SILENT = 1e-8  # mean square (-80 dBFS) under which a frame is silent
FAINT = 1e-5  # share of the loudest frame's power (-50 dB) under which another one is
STEADY = 0.05  # share of its power by which half of the bands must rise or fall

REACH = 3  # frames to either side within which a bit that flips is doubtful
MOST = 32  # anchors of a clip
DOUBTFUL = 5  # bits of an anchor's word that are tried both ways
BEYOND = 10  # frames from an anchor to the words before and after it that must agree, too
ODD = 20  # of their 64 bits that may be wrong
CENTRES = 8  # anchors of a common word, the first ones, with which every other one is paired
COMMON = 1_000  # anchors with the same word, from which on it says nothing
KEYS = 2**24  # words sorted at once, about
CLIPS = 2**25  # at most, so that a meeting fits in 64 bits


def fingerprint(waveform: np.ndarray) -> bytes:
    """Little-endian words of 32 bits, one a frame, of a mono waveform at PRINT_RATE; only its first 120 s count."""
    power = band_power(waveform[: PRINT_SECONDS * PRINT_RATE])  # (frames, 33)
    words = np.zeros(len(power), "<u4")
    if len(power) > 2 * EDGE:
        power = smooth(power)
        slope, pair = power[:, :-1] - power[:, 1:], power[:, :-1] + power[:, 1:]
        rise = slope[2 * LAG :] - slope[: -2 * LAG]  # (frames - 24, 32)
        total = power.sum(1)
        heard = total > max(SILENT, FAINT * float(total.max()))
        moving = (np.abs(rise) > STEADY * (pair[LAG:-LAG] + FAINT * total[LAG:-LAG, None])).sum(1) >= 16
        bits = np.packbits(rise > 0, axis=1, bitorder="little").view("<u4")[:, 0]
        words[EDGE:-EDGE] = np.where(heard[LAG:-LAG] & moving, bits, 0)
    return words.tobytes()


def band_power(waveform: np.ndarray) -> np.ndarray:
    """Mean square of a waveform in every band, (frames, 33) float32."""
    from scipy.fft import rfft  # numpy's would go through float64

    waveform = np.pad(np.asarray(waveform, np.float32), (0, max(0, WINDOW - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::HOP]
    window = sine()
    power = np.empty((len(frames), len(BANDS) - 1), np.float32)
    for start in range(0, len(frames), BLOCK):
        bins = rfft(frames[start : start + BLOCK] * window).view(np.float32)  # real and imaginary parts in turn
        power[start : start + BLOCK] = np.add.reduceat(bins * bins, 2 * BANDS, axis=1)[:, :-1]
    return power


@cache
def sine() -> np.ndarray:
    """The window: half a period of a sine, whose squares add up to a constant where windows overlap by half."""
    return (np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW) * 2 / WINDOW).astype(np.float32)


def smooth(power: np.ndarray) -> np.ndarray:
    """A running mean over time with the weights of a Hann window, without the frames that it cannot centre on."""
    weights = np.hanning(SMOOTH + 2)[1:-1].astype(np.float32)
    mean = np.zeros_like(power[SMOOTH - 1 :])
    for weight, start in zip(weights / weights.sum(), range(SMOOTH), strict=True):
        mean += weight * power[start : start + len(mean)]
    return mean


class Anchors(NamedTuple):
    """The most settled frames of many clips, in the order of the clips."""

    clip: np.ndarray  # uint32
    frame: np.ndarray  # uint16
    word: np.ndarray  # uint32
    around: np.ndarray  # (2, anchors) uint32: the words BEYOND frames before and after
    doubtful: np.ndarray  # (DOUBTFUL, anchors) uint8: the numbers of its least settled bits


def anchors(words: np.ndarray, clip: np.ndarray, frame: np.ndarray) -> Anchors:
    """Anchors of clips that lie one after another; `clip` and `frame` say where each word belongs.

    A frame is settled if few of its bits flip within REACH frames; an anchor is more settled than its neighbours.
    The first and last words of every fingerprint are 0, so that nothing reaches from one clip into the next.
    """
    doubts = unsettled(words)
    settled = sum(np.bitwise_count(~each) for each in doubts) * (words != 0)
    before, after = np.pad(settled, (1, 0))[:-1], np.pad(settled, (0, 1))[1:]
    peaks = np.flatnonzero((settled > before) & (settled >= after))
    best = peaks[np.lexsort((-settled[peaks].astype(int), clip[peaks]))]
    place = np.arange(len(best)) - np.searchsorted(clip[best], clip[best])  # in its clip, the most settled first
    at = np.sort(best[place < MOST])
    padded = np.pad(words, BEYOND)
    around = np.stack([padded[at], padded[at + 2 * BEYOND]])
    return Anchors(clip[at], frame[at], words[at], around, lowest([each[at] for each in doubts]))


def unsettled(words: np.ndarray) -> list[np.ndarray]:
    """For every reach from 1 to REACH the bits of each word that flip within so many frames of it."""
    flips = np.pad(words[1:] ^ words[:-1], REACH)  # flips[t + REACH]: between frames t and t + 1
    near, found = np.zeros_like(words), []
    for reach in range(1, REACH + 1):
        before, after = REACH - reach, REACH + reach - 1
        near = near | flips[before : before + len(words)] | flips[after : after + len(words)]
        found.append(near)
    return found


def lowest(doubts: list[np.ndarray]) -> np.ndarray:
    """The numbers of DOUBTFUL bits of each word, those of the first set before those of the next, low ones first."""
    chosen, numbers = np.zeros_like(doubts[0]), []
    for _ in range(DOUBTFUL):
        left = ~chosen
        for doubt in reversed(doubts):
            left = np.where(doubt & ~chosen, doubt & ~chosen, left)
        bit = left & (~left + np.uint32(1))
        chosen |= bit
        numbers.append(np.bitwise_count(bit - np.uint32(1)))
    return np.stack(numbers)


def meetings(found: Anchors) -> np.ndarray:
    """Pairs of clips that may be copies: rows (later clip, earlier clip, offset in frames), in that order.

    The offset is that of the later clip's frames against the earlier one's. Clips meet where their anchors have the
    same word up to doubtful bits, and the words before and after agree by and large.
    """
    passes = 1 + (len(found.word) << DOUBTFUL) // KEYS
    met = np.unique(np.concatenate([meet(found, variants(found, number, passes)) for number in range(passes)]))
    return np.stack([met >> 38, met >> 13 & (CLIPS - 1), (met & 8191) - 4096], 1)


def variants(found: Anchors, number: int, passes: int) -> np.ndarray:
    """Every anchor's word with its doubtful bits either way, sorted: 32 bits of hash, 32 of the anchor's index.

    Of all hashes only the `number`th of `passes` shares.
    """
    keys = []
    for flips in range(1 << DOUBTFUL):
        word = found.word.copy()
        for each, bit in enumerate(found.doubtful):
            if flips >> each & 1:
                word ^= np.uint32(1) << bit
        mixed = word * np.uint32(0x9E3779B1)  # odd: no two words share a hash
        mine = np.flatnonzero((mixed >= number * 2**32 // passes) & (mixed <= (number + 1) * 2**32 // passes - 1))
        keys.append(mixed[mine].astype(np.uint64) << 32 | mine.astype(np.uint64))
    together = np.concatenate(keys)
    together.sort()
    return together


def meet(found: Anchors, keys: np.ndarray) -> np.ndarray:
    """Meetings of anchors with the same word: 25 bits of the later clip, 25 of the earlier, 13 of offset + 4096."""
    first = changes(keys >> 32)
    keys = keys[~(first & np.append(first[1:], True))]  # most words nobody shares
    word, anchor = (keys >> 32).astype(np.uint32), (keys & 0xFFFFFFFF).astype(np.uint32)
    fresh = changes(word) | changes(found.clip[anchor])  # a loop comes back to its words: once is enough
    word, anchor = word[fresh], anchor[fresh]
    starts = np.flatnonzero(changes(word))
    sizes = np.diff(starts, append=len(word))
    start = np.repeat(np.where(sizes < COMMON, starts, len(word)), sizes)  # what is common has no centre before it
    packed = []
    for centre in range(CENTRES):
        later = np.flatnonzero(start + centre < np.arange(len(word)))
        late, early = anchor[later], anchor[start[later] + centre]
        odd = np.bitwise_count(found.around[:, late] ^ found.around[:, early]).sum(0)
        late, early = late[odd <= ODD], early[odd <= ODD]
        offset = found.frame[late].astype(np.int64) - found.frame[early]
        packed.append(
            found.clip[late].astype(np.int64) << 38 | found.clip[early].astype(np.int64) << 13 | offset + 4096
        )
    return np.unique(np.concatenate(packed))


def changes(values: np.ndarray) -> np.ndarray:
    """Whether each value differs from the one before it; the first does."""
    return np.append(np.ones(min(len(values), 1), bool), values[1:] != values[:-1])


def wrong_bits(late: np.ndarray, early: np.ndarray, offset: int) -> tuple[float, int, int]:
    """Share of wrong bits where either clip is heard, frames in which both are, and frames of overlap.

    Where only one is heard half of its bits count as wrong. Both ends of the overlap are a clip's, and say nothing.
    """
    late, early = late[max(offset, 0) :], early[max(-offset, 0) :]
    overlap = min(len(late), len(early))
    late, early = late[EDGE : overlap - EDGE], early[EDGE : overlap - EDGE]
    both = (late != 0) & (early != 0)
    heard, either = int(both.sum()), int(((late | early) != 0).sum())
    wrong = int(np.bitwise_count((late ^ early)[both]).sum()) + 16 * (either - heard)
    return wrong / (32 * max(either, 1)), heard, overlap
