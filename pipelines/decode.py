"""Open audio: bytes become blocks of float32 frames, one second each, in bounded memory.

libav (PyAV) reads MP3, AAC, Vorbis, Opus and what comes in MP4 or WebM; libsndfile reads WAV, FLAC, AIFF and the like,
and is asked first about anything else. Each was the faster one there. For MP3 libav is also the right one: without a
length in its header libsndfile guesses it from the first frame, and what lies behind it is lost.
Both see an open file, libav with a list of allowed formats too, so that a playlist cannot reach elsewhere.
"""

import errno
import io
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import Rejected
from pipelines.disk import BuildError
from pipelines.local import readable

if TYPE_CHECKING:
    import av
    import numpy as np
    import soundfile

RATES = range(1_000, 1_000_000)  # Hz; a header that claims another would make the resampler explode
MOST_CHANNELS = 64
MOST_SAMPLES = MOST_CHANNELS * 192_000  # a second: 49 MB
LIBAV_FORMATS = "aac,ac3,aiff,amr,ape,asf,avi,caf,flac,flv,matroska,webm,mov,mp3,mpeg,mpegts,ogg,tta,wav,wv"
ESTIMATED = ("mp3", "aac", "ac3", "amr", "mpeg", "mpegts")  # libav guesses how long these are
FOR_LIBAV = (b"OggS", b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9",
             b"\x1aE\xdf\xa3", b"#!AMR", b"0&\xb2u", b"wvpk")  # fmt: skip
MAGIC = (*FOR_LIBAV, b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"caff", b".snd")
PLAIN = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # subtypes in which libsndfile seeks to the very frame
BUFFER = 2**16  # bytes


@dataclass(frozen=True)
class Stream:
    """An open recording: Hz, channels, the frames its header declares (None if it does not say), its blocks.

    Each block is float32 (frames, channels), full scale 1.0; all hold one second but the last, and the first one of
    a section.
    """

    sample_rate: int
    channels: int
    declared: int | None
    blocks: Iterator["np.ndarray"]
    seek: Callable[[int], bool] | None = None  # to that very frame, before the first block; whether it can


class Window(io.RawIOBase):
    """A file, or a piece of a pack, to read from. Decoders take no exception: an error reads as the end of it.

    `check` raises what was kept back: Rejected for a file of its own, BuildError for a pack, which is ours.
    """

    def __init__(self, path: Path, offset: int = 0, length: int | None = None) -> None:
        self.path, self.offset, self.place = path, offset, 0
        self.packed = length is not None
        self.trouble: OSError | None = None
        try:
            self.file = path.open("rb", buffering=0)
            held = os.fstat(self.file.fileno()).st_size - offset
        except OSError as error:
            self.trouble = error
            self.check()
        self.length = held if length is None else length
        if held < self.length:
            raise BuildError(f"{path} is shorter than its rows say: delete its folder and run again")

    def check(self) -> None:
        """Raise the error, if any, that a decoder took for the end of the file."""
        if self.trouble and self.packed:
            raise BuildError(f"cannot read {self.path}: {self.trouble}: delete its folder and run again")
        if self.trouble:
            with readable():
                raise self.trouble

    def readinto(self, buffer: Any, /) -> int:
        wanted = memoryview(buffer)[: max(0, self.length - self.place)]
        try:
            count = os.preadv(self.file.fileno(), [wanted], self.offset + self.place)
        except OSError as error:
            self.trouble, count = error, 0
        self.place += count
        return count

    def seek(self, offset: int, whence: int = 0, /) -> int:
        place = offset + {0: 0, 1: self.place, 2: self.length}.get(whence, -sys.maxsize)
        if place < 0:
            raise OSError(errno.EINVAL, "not a place in the file")
        self.place = place
        return place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
        super().close()


class Patient(io.BufferedReader):
    """A buffered file that says no to an impossible seek, where decoders can take no exception."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return -errno.EINVAL


@contextmanager
def open_audio(source: Path | Window, start: float | None = None, end: float | None = None) -> Iterator[Stream]:
    """Open a recording, or its section from `start` to `end` seconds; raises Rejected for what is not audio."""
    window = source if isinstance(source, Window) else Window(source)
    with Patient(window, BUFFER) as file:
        head = file.read(12)
        sound = None if head.startswith(FOR_LIBAV) or head[4:8] == b"ftyp" else open_sound(file)
        with open_libav(file, knows(head)) if sound is None else open_sndfile(file, sound) as stream:
            stream = section(credible(stream), start, end)
            yield replace(stream, blocks=unbroken(stream.blocks, window))


def credible(stream: Stream) -> Stream:
    """The stream itself; raises Rejected where its header cannot be true."""
    rate, channels = stream.sample_rate, stream.channels
    if rate not in RATES or not 0 < channels <= MOST_CHANNELS or rate * channels > MOST_SAMPLES:
        raise Rejected("undecodable", f"header claims {rate} Hz, {channels} channels")
    return stream


def knows(head: bytes) -> bool:
    """Whether the first 12 bytes are those of an audio container (so that a failure means corrupt)."""
    return head.startswith(MAGIC) or head[4:8] == b"ftyp"


def unbroken(blocks: Iterable["np.ndarray"], window: Window) -> Iterator["np.ndarray"]:
    """The blocks; trouble with reading the file comes before what a decoder made of it."""
    try:
        yield from blocks
    except Rejected:
        window.check()
        raise
    window.check()


def section(stream: Stream, start: float | None, end: float | None) -> Stream:
    """The frames from `start` to `end` seconds: exactly those from round(start * rate), before round(end * rate).

    What is declared is the part of the section that the recording has by its own account: one that ends early is
    kept as far as it goes.
    """
    first = round((start or 0) * stream.sample_rate)
    last = None if end is None else round(end * stream.sample_rate)
    if first == 0 and last is None:
        return stream
    declared = stream.declared
    if declared is not None:
        declared = max(0, min(declared, declared if last is None else last) - first)
    most = 0 if declared == 0 else None if last is None else max(0, last - first)
    skip = 0 if most != 0 and stream.seek and stream.seek(first) else first
    return replace(stream, declared=declared, blocks=crop(stream.blocks, skip, most))


def crop(blocks: Iterable["np.ndarray"], skip: int, most: int | None) -> Iterator["np.ndarray"]:
    """The frames after the first `skip`, at most `most`; what lies behind them is not decoded."""
    left = sys.maxsize if most is None else most
    for block in blocks:
        piece = block[skip : skip + left]
        skip, left = max(0, skip - len(block)), left - len(piece)
        if len(piece):
            yield piece
        if not left:
            return


def straight(file: Any, *arguments: Any, **named: Any) -> "soundfile.SoundFile":
    """A SoundFile that reads or writes straight on; by itself it asks for its place and seeks there at every call."""
    import soundfile

    sound = soundfile.SoundFile(file, *arguments, **named)
    sound.seekable = lambda: False  # type: ignore[method-assign]
    return sound


def open_sound(file: Patient) -> "soundfile.SoundFile | None":
    """The file as libsndfile sees it; None if it does not know it, or is not to be trusted with it."""
    import soundfile

    file.seek(0)
    try:
        sound = straight(file)
    except soundfile.LibsndfileError:
        return None
    if sound.format in ("MP3", "OGG") or sound.subtype.startswith("MPEG"):
        sound.close()
        return None
    return sound


@contextmanager
def open_sndfile(file: Patient, sound: "soundfile.SoundFile") -> Iterator[Stream]:
    """What libsndfile has opened as a Stream."""
    with sound:
        place = file.tell()
        declared = declared_by_chunk(file, sound.channels, sound.subtype) or sound.frames
        file.seek(place)
        known = declared if declared < sys.maxsize else None  # a FLAC may not say
        yield Stream(sound.samplerate, sound.channels, known, sndfile_blocks(sound), partial(seek_frame, sound))


def seek_frame(sound: "soundfile.SoundFile", frame: int) -> bool:
    """Go to that very frame, where the format allows it and has as many; raises Rejected if it is broken there."""
    import soundfile

    if not sound.subtype.startswith(PLAIN) or not frame < sound.frames < sys.maxsize:
        return False
    try:
        return sound.seek(frame) == frame
    except soundfile.LibsndfileError as error:
        raise Rejected("undecodable", str(error)) from error


def sndfile_blocks(sound: "soundfile.SoundFile") -> Iterator["np.ndarray"]:
    """Blocks of one second from libsndfile; its errors become Rejected."""
    import soundfile

    try:
        while len(block := sound.read(sound.samplerate, dtype="float32", always_2d=True)):
            yield block
    except soundfile.LibsndfileError as error:
        raise Rejected("undecodable", str(error)) from error


def declared_by_chunk(file: Patient, channels: int, subtype: str) -> int | None:
    """Frames that the data chunk of a PCM WAV or AIFF claims; None for other formats.

    libsndfile silently shortens the claim to what is there. A stream written by a program that could not seek
    back (both sizes 0 or 0xFFFFFFFF) claims nothing.
    """
    width = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}.get(subtype)
    file.seek(0)
    form, whole = file.read(4), file.read(4)
    order = {b"RIFF": "<I", b"RIFX": ">I", b"FORM": ">I"}.get(form)
    if order is None or width is None:
        return None
    file.seek(12)
    for _ in range(1_000):
        if len(header := file.read(8)) < 8:
            return None
        size = struct.unpack(order, header[4:])[0]
        if header[:4] in (b"data", b"SSND"):
            unknown = header[4:] == whole and header[4:] in (b"\0\0\0\0", b"\xff\xff\xff\xff")
            return None if unknown else size // (width * channels)
        file.seek(size + size % 2, 1)
    return None


@contextmanager
def open_libav(file: Patient, known: bool) -> Iterator[Stream]:
    """Open through libav; raises Rejected "not-audio", or "undecodable" if the container is a known one."""
    import av

    file.seek(0)
    safe = {"format_whitelist": LIBAV_FORMATS, "protocol_whitelist": ""}
    try:
        container = av.open(file, "r", options=safe)
    except (av.FFmpegError, ValueError) as error:
        raise Rejected("undecodable" if known else "not-audio", getattr(error, "strerror", "")) from error
    with container:
        if not container.streams.audio:
            raise Rejected("not-audio", f"a {container.format.name} file without an audio stream")
        track = container.streams.audio[0]
        if track.codec_context is None:
            raise Rejected("undecodable", "libav has no decoder for its codec")
        sure = container.format.name not in ESTIMATED
        seconds = float(track.duration * track.time_base) if sure and track.duration and track.time_base else 0
        rate, channels = track.rate or 0, track.channels or 0
        declared = round(seconds * rate) or None
        yield Stream(rate, channels, declared, track_blocks(container, track, declared))


def track_blocks(
    container: "av.container.InputContainer", track: "av.AudioStream", declared: int | None
) -> Iterator["np.ndarray"]:
    """Blocks of one second of a track.

    What libav itself cuts off Vorbis is at times up to a window too much at the end; so it is told to leave all, of
    which the first frame (half a window without its neighbour) and what lies behind the declared end go.
    """
    from av.codec.context import Flags2

    frames = track_frames(container, track)
    if track.codec_context.name != "vorbis" or container.format.name != "ogg" or not declared:
        return libav_blocks(frames, track.rate)
    track.codec_context.flags2 |= Flags2.skip_manual
    return crop(libav_blocks(islice(frames, 1, None), track.rate), 0, declared)


def track_frames(container: "av.container.InputContainer", track: "av.AudioStream") -> Iterator["av.AudioFrame"]:
    """Frames of a track. Packets that do not decode are passed over, as libav's own player does.

    Raises Rejected if none does.
    """
    import av

    trouble, decoded = "", False
    try:
        for packet in container.demux(track):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                trouble = error.strerror or "invalid data"
                continue
            decoded = decoded or bool(frames)
            yield from frames
    except (av.FFmpegError, ValueError) as error:
        raise Rejected("undecodable", getattr(error, "strerror", str(error))) from error
    if trouble and not decoded:
        raise Rejected("undecodable", trouble)


def libav_blocks(frames: Iterable["av.AudioFrame"], rate: int) -> Iterator["np.ndarray"]:
    """Blocks of one second; raises Rejected if the frames change their kind on the way.

    A frame holds 20 ms: they are converted a second at a time, since each call costs as much as decoding them.
    """
    import av

    fifo, same = av.AudioFifo(), av.AudioResampler(format="fltp", rate=rate)
    try:
        for frame in frames:
            frame.pts = None
            fifo.write(frame)
            if fifo.samples >= rate:
                yield from planes(same, fifo.read(rate))
        if (rest := fifo.read()) is not None:
            yield from planes(same, rest)
            yield from planes(same, None)
    except (av.FFmpegError, ValueError) as error:
        raise Rejected("undecodable", getattr(error, "strerror", str(error))) from error


def planes(same: "av.AudioResampler", frame: "av.AudioFrame | None") -> Iterator["np.ndarray"]:
    """(frames, channels) float32 of what the resampler gives for a frame; None gets the rest out of it."""
    if frame is not None:
        frame.pts = None
    for piece in same.resample(frame):
        if piece.samples:
            yield piece.to_ndarray().T
