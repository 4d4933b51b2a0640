"""Open audio: a file's bytes become blocks of float32 frames, one second each, in bounded memory.

libsndfile reads WAV, FLAC, Ogg, AIFF and more; what it does not know goes to libav through PyAV (m4a, mp4, webm,
...), and so does MP3: soundfile seeks after every read, which there breaks the bit reservoir at each block's edge.
libav sees an open file and a list of allowed formats, so that a playlist cannot reach elsewhere.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Rejected
from pipelines.download import readable

if TYPE_CHECKING:
    import av
    import numpy as np
    import soundfile

RATES = range(1_000, 1_000_000)  # Hz; a header that claims another would make the resampler explode
MOST_CHANNELS = 64
LIBAV_FORMATS = "aac,ac3,aiff,amr,ape,asf,avi,caf,flac,flv,matroska,webm,mov,mp3,mpeg,mpegts,ogg,tta,wav,wv"
ESTIMATED = ("mp3", "aac", "ac3", "amr", "mpeg", "mpegts")  # libav guesses how long these are
MAGIC = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3",
         b"\xff\xf1", b"\xff\xf9", b"\x1aE\xdf\xa3", b"caff", b".snd", b"#!AMR", b"0&\xb2u", b"wvpk")  # fmt: skip


@dataclass(frozen=True)
class Stream:
    """An open recording: Hz, channels, the frames its header declares (None if it does not say), its blocks.

    Each block is float32 (frames, channels), full scale 1.0; all but the last hold one second.
    """

    sample_rate: int
    channels: int
    declared: int | None
    blocks: Iterator["np.ndarray"]


@contextmanager
def open_audio(path: Path) -> Iterator[Stream]:
    """Open a recording with the first library that knows it; raises Rejected for what is not audio."""
    import soundfile

    with readable():
        file = Patient(path)
        head = file.read(12)
    try:
        sound = soundfile.SoundFile(bytes(path))
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a file named .raw, which has no header
        sound = None
    if sound is None or sound.format == "MP3":
        with file, open_libav(file, known=knows(head)) as stream:
            yield credible(stream)
        return
    with file, sound:
        declared = declared_by_chunk(file, sound.channels, sound.subtype) or sound.frames
        yield credible(Stream(sound.samplerate, sound.channels, declared, sndfile_blocks(sound)))


def credible(stream: Stream) -> Stream:
    """The stream itself; raises Rejected where its header cannot be true."""
    if stream.sample_rate not in RATES or not 0 < stream.channels <= MOST_CHANNELS:
        raise Rejected("undecodable", f"header claims {stream.sample_rate} Hz, {stream.channels} channels")
    return stream


def knows(head: bytes) -> bool:
    """Whether the first 12 bytes are those of an audio container (so that a failure means corrupt)."""
    return head.startswith(MAGIC) or head[4:8] == b"ftyp"


def sndfile_blocks(sound: "soundfile.SoundFile") -> Iterator["np.ndarray"]:
    """Blocks of one second from libsndfile; its errors become Rejected."""
    import soundfile

    try:
        while len(block := sound.read(sound.samplerate, dtype="float32", always_2d=True)):
            yield block
    except soundfile.LibsndfileError as error:
        raise Rejected("undecodable", str(error)) from error


def declared_by_chunk(handle: FileIO, channels: int, subtype: str) -> int | None:
    """Frames that the data chunk of a PCM WAV or AIFF claims; None for other formats.

    libsndfile silently shortens the claim to what is there. A stream written by a program that could not seek
    back (both sizes 0 or 0xFFFFFFFF) claims nothing.
    """
    width = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}.get(subtype)
    with readable():
        handle.seek(0)
        form, whole = handle.read(4), handle.read(4)
        order = {b"RIFF": "<I", b"RIFX": ">I", b"FORM": ">I"}.get(form)
        if order is None or width is None:
            return None
        handle.seek(12)
        for _ in range(1_000):
            if len(header := handle.read(8)) < 8:
                return None
            size = struct.unpack(order, header[4:])[0]
            if header[:4] in (b"data", b"SSND"):
                unknown = header[4:] == whole and header[4:] in (b"\0\0\0\0", b"\xff\xff\xff\xff")
                return None if unknown else size // (width * channels)
            handle.seek(size + size % 2, 1)
    return None


class Patient(FileIO):
    """A file that says no to a seek before its start, where libav can take no exception."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            return -(error.errno or 1)


@contextmanager
def open_libav(handle: FileIO, known: bool) -> Iterator[Stream]:
    """Open through libav; raises Rejected "not-audio", or "undecodable" if the container is a known one."""
    import av

    handle.seek(0)
    safe = {"format_whitelist": LIBAV_FORMATS, "protocol_whitelist": ""}
    with readable():
        try:
            container = av.open(handle, "r", options=safe)
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
        yield Stream(rate, channels, round(seconds * rate) or None, libav_blocks(container, rate))


def libav_blocks(container: "av.container.InputContainer", rate: int) -> Iterator["np.ndarray"]:
    """Blocks of one second from libav. Packets that do not decode are passed over, as its own player does.

    Raises Rejected if none does.
    """
    import av

    fifo, same = av.AudioFifo(), av.AudioResampler(format="flt", rate=rate)
    trouble, decoded = "", False

    def take(pieces: "list[av.AudioFrame]") -> None:
        for piece in pieces:
            piece.pts = None
            fifo.write(piece)

    try:
        for packet in container.demux(audio=0):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                trouble = error.strerror or "invalid data"
                continue
            for frame in frames:
                decoded = True
                take(same.resample(frame))
            while block := fifo.read(rate):
                yield interleaved(block)
        take(same.resample(None) if decoded else [])
        while block := fifo.read(rate, partial=True):
            yield interleaved(block)
    except (av.FFmpegError, ValueError) as error:
        raise Rejected("undecodable", getattr(error, "strerror", str(error))) from error
    if trouble and not decoded:
        raise Rejected("undecodable", trouble)


def interleaved(frame: "av.AudioFrame") -> "np.ndarray":
    """(frames, channels) of a packed libav frame."""
    return frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
