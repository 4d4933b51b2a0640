"""Videos: a real server in a thread, yt-dlp's generic extractor, and files whose every second is heard."""

import io
import re
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import ClassVar

import av
import numpy as np
import pytest

from pipelines.clip import Rejected
from pipelines.decode import open_audio
from pipelines.disk import BuildError
from pipelines.video import Bounds, Budget, Section, explained, fetch_block, fetch_video, is_video, opened, reject

SECONDS = 60
CODECS = {"aac": ("aac", 44_100), "opus": ("libopus", 48_000), "mp3": ("libmp3lame", 44_100)}
HOMES = {"aac": "mp4", "opus": "mp4", "mp3": "mp3"}  # what each codec is encoded into, before it is copied
KINDS = {  # name: container, what is in it, options of the muxer
    "song.webm": ("webm", "opus", {}),
    "song.m4a": ("mp4", "aac", {}),
    "fragments.m4a": ("mp4", "aac", {"movflags": "empty_moov+dash+default_base_moof", "frag_duration": "2000000"}),
    "opus.mp4": ("mp4", "opus", {}),
    "aac.mkv": ("matroska", "aac", {}),
    "song.mp3": ("mp3", "mp3", {}),
    "song.ts": ("mpegts", "aac", {}),
}
TYPES = {".webm": "audio/webm", ".m4a": "audio/mp4", ".mp3": "audio/mpeg", ".mp4": "video/mp4", ".html": "text/html",
         ".mkv": "video/x-matroska", ".m3u8": "application/x-mpegURL", ".ts": "video/mp2t"}  # fmt: skip
started: list[str] = []  # programs that this process began
sys.addaudithook(lambda event, what: started.append(str(what[0])) if event == "subprocess.Popen" else None)


def pitch(second: int) -> float:
    """Hz of the tone in a second, different in neighbours and growing."""
    return 300.0 + 40.0 * second


@cache
def encoded(codec: str) -> bytes:
    """A minute whose pitch changes each second."""
    container, (name, rate) = HOMES[codec], CODECS[codec]
    seconds = np.arange(SECONDS * rate) / rate
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch(np.floor(seconds))) / rate)
    written = io.BytesIO()
    with av.open(written, "w", format=container) as target:
        track = target.add_stream(name, rate=rate, layout="mono", options={"aac_coder": "fast"})
        track.bit_rate = 192_000
        track.codec_context.open()
        frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        same = av.AudioResampler(format=track.format, rate=rate, frame_size=track.codec_context.frame_size)
        for piece in [*same.resample(frame), *same.resample(None), None]:
            target.mux(track.encode(piece))
    return written.getvalue()


@cache
def song(name: str) -> bytes:
    """The minute in one of the containers."""
    container, codec, options = KINDS[name]
    written = io.BytesIO()
    with av.open(io.BytesIO(encoded(codec))) as source, av.open(written, "w", container, options=options) as target:
        copied = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    return written.getvalue()


def page(tag: str) -> bytes:
    return f"<!DOCTYPE html><html><head><title>A song</title></head><body>{tag}</body></html>".encode()


def playlist() -> bytes:
    """An HLS playlist of ten pieces of one transport stream."""
    pieces = "".join(f"#EXTINF:6.0,\n/hls/{number}.ts\n" for number in range(10))
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:6\n#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:VOD\n"
    return (head + pieces + "#EXT-X-ENDLIST\n").encode()


class Site(BaseHTTPRequestHandler):
    """A path is a behaviour."""

    protocol_version = "HTTP/1.1"
    sent: ClassVar[Counter[str]] = Counter()  # bytes by path

    def setup(self) -> None:
        self.request.setsockopt(1, 7, 16_384)  # a small SO_SNDBUF: what is sent was wanted
        super().setup()

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client hung up
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.sent[self.path] += 0
        name = self.path.rpartition("/")[2]
        behaviour = self.path.split("/")[1]
        if hasattr(self, behaviour):
            getattr(self, behaviour)(name)
        else:
            self.file(song(name), name, ranges=behaviour != "whole")

    do_HEAD = do_GET

    def file(self, content: bytes, name: str, ranges: bool = False, status: int = 200) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if ranges else None
        first = int(wanted[1]) if wanted else 0
        last = min(int(wanted[2] or len(content)), len(content) - 1) if wanted else len(content) - 1
        self.send_response(206 if wanted else status)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Type", TYPES.get(Path(name).suffix, "text/html"))
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        for place in range(first, last + 1, 8_192):
            self.sent[self.path] += self.wfile.write(content[place : min(place + 8_192, last + 1)])

    def page(self, name: str) -> None:
        self.file(page(f'<audio src="/song/{name}"></audio>'), "page.html")

    def status(self, name: str) -> None:
        self.file(b"<html>no</html>", "page.html", status=int(name))

    def words(self, name: str) -> None:
        self.file(page("<p>only words</p>"), "page.html")

    def redirect(self, name: str) -> None:
        self.send_response(302)
        self.send_header("Location", {"metadata": "http://169.254.169.254/latest/song.webm", "circle": "circle"}[name])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def endless(self, name: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", TYPES[Path(name).suffix])
        self.send_header("Connection", "close")
        self.end_headers()
        while True:
            self.sent[self.path] += self.wfile.write(b"<html>" + bytes(16_384))
            time.sleep(0.1 if name.startswith("slow") else 0)

    def hang(self, name: str) -> None:
        time.sleep(1)
        self.close_connection = True

    def drip(self, name: str) -> None:
        for _ in range(15):
            self.wfile.write(b"H")
            time.sleep(0.1)
        self.close_connection = True

    def cut(self, name: str) -> None:
        """The first half, and then the line is dead."""
        self.send_response(200)
        self.send_header("Content-Type", TYPES[Path(name).suffix])
        self.send_header("Content-Length", str(len(song(name))))
        self.end_headers()
        self.wfile.write(song(name)[: len(song(name)) // 2])
        self.close_connection = True

    def expires(self, name: str) -> None:
        """A file whose address stops being good after its first block."""
        if self.headers.get("Range", "bytes=0-").startswith("bytes=0-"):
            self.file(song(name), name, ranges=True)
        else:
            self.file(b"expired", "page.html", status=403)

    def members(self, name: str) -> None:
        member = "login=yes" in self.headers.get("Cookie", "")
        self.file(song(name) if member else b"no", name if member else "page.html", status=200 if member else 403)

    def two(self, name: str) -> None:
        self.file(page('<audio src="/song/song.webm"></audio><audio src="/song/song.m4a"></audio>'), "page.html")

    def lost(self, name: str) -> None:
        self.file(page('<audio src="/status/404"></audio>'), "page.html")

    def inside(self, name: str) -> None:
        self.file(page('<audio src="http://169.254.169.254/song.webm"></audio>'), "page.html")

    def reset(self, name: str) -> None:
        self.close_connection = True

    def gaps(self, name: str) -> None:
        self.file(playlist().replace(b"/hls/7.ts", b"/status/404"), name)

    def live(self, name: str) -> None:
        self.file(playlist().replace(b"#EXT-X-PLAYLIST-TYPE:VOD\n", b"").replace(b"#EXT-X-ENDLIST\n", b""), name)

    def odd(self, name: str) -> None:
        self.file(playlist().replace(b"SEQUENCE:0", b"SEQUENCE:zero"), name)

    def flash(self, name: str) -> None:
        """A manifest whose index is junk, at which yt-dlp's own assertions fail."""
        head = '<?xml version="1.0"?><manifest xmlns="http://ns.adobe.com/f4m/1.0"><duration>60</duration>'
        junk = '<bootstrapInfo id="a">AAAAEGp1bmsAAAAAAAAAAA==</bootstrapInfo><media url="x" bootstrapInfoId="a"/>'
        self.file(f"{head}{junk}</manifest>".encode(), name)

    def hls(self, name: str) -> None:
        content = song("song.ts")
        if name.endswith(".m3u8"):
            return self.file(playlist(), name)
        size = -(-len(content) // 188 // 10) * 188
        number = int(name.partition(".")[0])
        self.file(content[number * size : (number + 1) * size], name)


@pytest.fixture(scope="module")
def site():
    for name in KINDS:
        song(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def bounds(tmp_path, monkeypatch):
    """Bounds for a scratch folder; nothing may stay there, nor in the working folder, nor may a program be started."""
    scratch, working = tmp_path / "scratch", tmp_path / "working"
    scratch.mkdir()
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setenv("XDG_CACHE_HOME", str(working / "cache"))
    Site.sent.clear()
    started.clear()
    yield Bounds(scratch, private=True, read_timeout=2.0, timeout=20.0)
    assert not [*scratch.iterdir(), *working.iterdir()]
    assert not started


def fetched(url: str, start: float | None, end: float | None, bounds: Bounds) -> tuple[bytes, Section]:
    into = io.BytesIO()
    section = fetch_video(url, start, end, into, bounds)
    return into.getvalue(), section


def refused(url: str, bounds: Bounds, start: float | None = None, end: float | None = None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        fetched(url, start, end, bounds)
    return caught.value


@cache
def decoded(content: bytes) -> tuple[np.ndarray, int]:
    """The samples, as a build decodes them, and their rate."""
    with NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        with open_audio(Path(file.name)) as stream:
            return np.concatenate(list(stream.blocks))[:, 0], stream.sample_rate


def crop(content: bytes, section: Section) -> tuple[np.ndarray, int]:
    samples, rate = decoded(content)
    end = None if section.end is None else round(section.end * rate)
    return samples[round(section.start * rate) : end], rate


def heard(samples: np.ndarray, rate: int) -> list[int]:
    """Which second of the song each second of the samples is, by its pitch."""
    middles = [samples[at + rate // 4 : at + 3 * rate // 4] for at in range(0, len(samples) - rate // 2, rate)]
    peaks = [np.argmax(np.abs(np.fft.rfft(middle, rate))) for middle in middles]
    return [round((peak - pitch(0)) / 40.0) for peak in peaks]


@pytest.mark.parametrize("way, name", [("song", "song.webm"), ("whole", "song.m4a"), ("page", "song.mp3")])
def test_the_whole_recording_arrives_byte_for_byte(site, bounds, way, name):
    content, section = fetched(f"{site}/{way}/{name}", None, None, bounds)
    assert content == song(name) and section == Section(0.0, None)


@pytest.mark.parametrize("name", ["song.webm", "song.m4a", "fragments.m4a", "opus.mp4", "aac.mkv"])
@pytest.mark.parametrize("start, end", [(41.0, 45.0), (0.0, 3.0), (57.0, None)])
def test_a_section_is_the_same_crop_of_the_whole(site, bounds, name, start, end):
    content, section = fetched(f"{site}/page/{name}", start, end, bounds)
    samples, rate = crop(content, section)
    whole, _ = crop(song(name), Section(start, end))
    assert heard(samples, rate)[:3] == [int(start), int(start) + 1, int(start) + 2]
    off = 0 if name.endswith("m4a") else rate // 500  # Matroska and its delays tell the time in ms
    assert abs(len(samples) - len(whole)) <= off
    size = min(len(samples), len(whole)) - 2 * off
    errors = [np.abs(samples[lag : lag + size] - whole[off : off + size]).max() for lag in range(2 * off + 1)]
    assert min(errors) < 1e-3


@pytest.mark.parametrize("name", ["song.webm", "opus.mp4"])
def test_of_a_section_only_the_header_and_the_section_travel(site, bounds, name):
    content, _ = fetched(f"{site}/page/{name}", 41.0, 45.0, bounds)
    assert len(content) < len(song(name)) / 10
    assert len(content) < Site.sent[f"/song/{name}"] < len(song(name)) / 2


def test_a_section_is_the_same_bytes_each_time(site, bounds):
    assert fetched(f"{site}/song/song.webm", 9, 11, bounds) == fetched(f"{site}/song/song.webm", 9, 11, bounds)


@pytest.mark.parametrize("address", ["whole/song.webm", "song/song.mp3"], ids=["no ranges", "no index"])
def test_without_a_piecewise_way_the_whole_arrives_and_the_section_lies_in_it(site, bounds, address):
    content, section = fetched(f"{site}/{address}", 41.0, 45.0, bounds)
    assert content == song(address.rpartition("/")[2]) and section == Section(41.0, 45.0)


def test_the_pieces_of_an_hls_playlist_are_joined(site, bounds):
    content, section = fetched(f"{site}/hls/list.m3u8", 41.0, 45.0, bounds)
    assert section == Section(41.0, 45.0)
    assert heard(*crop(content, section)) == [41, 42, 43, 44]


def test_a_lost_piece_of_a_playlist_is_not_passed_over(site, bounds):
    assert refused(f"{site}/gaps/list.m3u8", bounds).reason == "http-404"


@pytest.mark.parametrize("address", ["page/song.webm", "page/song.m4a", "page/fragments.m4a"])
def test_a_section_beyond_the_end_is_empty(site, bounds, address):
    why = refused(f"{site}/{address}", bounds, 70.0, 80.0)
    assert why.reason == "empty" and "70 s" in why.detail


@pytest.mark.parametrize(
    "path, reason, detail",
    [
        ("status/404", "http-404", "Unable to download webpage: HTTP Error 404: Not Found"),
        ("status/503", "http-503", "Service Unavailable"),
        ("status/429", "rate-limited", "HTTP Error 429"),
        ("words/page", "unavailable-video", "Unsupported URL"),
        ("two/page", "unavailable-video", "list"),
        ("live/list.m3u8", "unavailable-video", "live"),
        ("odd/list.m3u8", "unavailable-video", "zero"),
        ("flash/list.f4m", "unavailable-video", "AssertionError"),
        ("redirect/metadata", "forbidden-address", "169.254.169.254"),
        ("redirect/circle", "bad-redirect", "redirect"),
        ("lost/page", "http-404", "404"),
        ("reset/page", "connection", ""),
        ("cut/song.webm", "incomplete-body", "more expected"),
        ("endless/song.html", "too-large", "more than"),
    ],
)
def test_trouble_has_a_reason_and_the_words_of_yt_dlp(site, bounds, path, reason, detail):
    why = refused(f"{site}/{path}", bounds)
    assert why.reason == reason and detail in why.detail
    assert not re.search("ERROR|\x1b|report this|caused by", why.detail)


def test_nobody_at_the_door_is_a_connection(bounds):
    assert refused("http://127.0.0.1:9/song.webm", bounds).reason == "connection"


@pytest.mark.parametrize("path", ["song/song.webm", "page/song.webm"])
def test_a_private_address_is_never_asked(site, bounds, path):
    why = refused(f"{site}/{path}", replace(bounds, private=False))
    assert why.reason == "forbidden-address" and "127.0.0.1" in why.detail
    assert not Site.sent


def test_a_page_that_leads_to_a_forbidden_address_leads_nowhere(site, bounds):
    for start in (None, 1.0):
        assert refused(f"{site}/inside/page", bounds, start).reason == "forbidden-address"


@pytest.mark.parametrize("path", ["endless/song.webm", "whole/song.webm", "hls/list.m3u8"])
def test_more_bytes_than_the_limit_are_too_large(site, bounds, path):
    why = refused(f"{site}/{path}", replace(bounds, max_bytes=500_000))
    assert why.reason == "too-large" and "more than 500000 bytes" in why.detail
    assert sum(Site.sent.values()) < 1_500_000


def test_a_file_that_declares_more_than_the_limit_is_not_begun(site, bounds):
    assert "declares" in refused(f"{site}/whole/song.webm", replace(bounds, max_bytes=1_500_000)).detail


def test_a_section_may_be_fetched_of_a_file_larger_than_the_limit(site, bounds):
    _, section = fetched(f"{site}/page/song.webm", 41.0, 45.0, replace(bounds, max_bytes=600_000))
    assert section.start < 1
    assert refused(f"{site}/page/song.webm", replace(bounds, max_bytes=200_000), 41.0, 45.0).reason == "too-large"


def test_silence_is_a_timeout(site, bounds):
    assert refused(f"{site}/hang/song.webm", replace(bounds, read_timeout=0.3)).reason == "timeout"


@pytest.mark.parametrize("path", ["hang/song.webm", "drip/song.webm", "endless/slow.webm"])
def test_a_server_that_does_not_finish_is_a_timeout(site, bounds, path):
    assert refused(f"{site}/{path}", replace(bounds, timeout=0.6)).reason == "timeout"


def test_an_address_that_expires_half_way_ends_the_section(site, bounds):
    assert refused(f"{site}/expires/song.webm", bounds, 41.0, 45.0).reason == "http-403"


def test_cookies_are_sent_and_their_file_stays_as_it_is(site, bounds, tmp_path):
    jar = tmp_path / "cookies.txt"
    jar.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tlogin\tyes\n")
    before = jar.stat().st_mtime_ns, jar.read_bytes()
    url = f"{site}/members/song.webm"
    assert refused(url, bounds).reason == "http-403"
    assert fetched(url, None, None, replace(bounds, cookies=str(jar)))[0] == song("song.webm")
    assert (jar.stat().st_mtime_ns, jar.read_bytes()) == before
    jar.write_text("nonsense")
    for wrong in (jar, tmp_path / "nowhere.txt"):
        with pytest.raises(BuildError, match="Netscape cookie file"):
            fetched(url, None, None, replace(bounds, cookies=str(wrong)))


def test_no_proxy_of_the_environment_is_asked(site, bounds, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert fetched(f"{site}/song/song.mp3", None, None, bounds)[0] == song("song.mp3")


@pytest.mark.parametrize(
    "message, reason",
    [
        ("Private video. Sign in if you've been granted access to this video.", "unavailable-video"),
        ("Video unavailable. This video has been removed by the uploader", "unavailable-video"),
        ("The uploader has not made this video available in your country", "unavailable-video"),
        ("Sign in to confirm your age. This video may be inappropriate for some users.", "unavailable-video"),
        ("Sign in to confirm you\u2019re not a bot. Use --cookies-from-browser", "rate-limited"),
        ("This content isn't available, try again later. The current session has been rate-limited by YouTube for up "
         "to an hour.", "rate-limited"),
        ("Join this channel to get access to members-only content like this video", "unavailable-video"),
        ("This video is DRM protected", "unavailable-video"),
        ("Requested format is not available. Use --list-formats for a list of available formats", "not-audio"),
    ],
)  # fmt: skip
def test_what_sites_say_of_a_video_has_a_reason(message, reason):
    from yt_dlp.utils import DownloadError, ExtractorError

    error = DownloadError(f"\x1b[0;31mERROR:\x1b[0m {ExtractorError(message, video_id='x', ie='youtube')}")
    why = reject(error, None)
    assert why.reason == reason and why.detail == f"[youtube] x: {message}".rstrip()


class Tripping:
    """In place of yt-dlp, where it asks the network for a block."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def urlopen(self, request: object) -> None:
        raise self.error


def test_whatever_yt_dlp_trips_over_within_a_file_is_the_videos_and_trouble_of_this_machine_is_not():
    with pytest.raises(Rejected, match="unavailable-video") as caught:
        fetch_block(Tripping(AssertionError("odd")), {"url": "http://x/"}, 0)
    assert "AssertionError('odd')" in caught.value.detail
    for error in (OSError(28, "No space left on device"), OSError(24, "Too many open files"), MemoryError(),
                  BuildError("no"), Rejected("timeout", "late")):  # fmt: skip
        with pytest.raises(type(error)) as raised:
            fetch_block(Tripping(error), {"url": "http://x/"}, 0)
        assert raised.value is error


def test_no_javascript_runtime_is_started_for_youtube(bounds, tmp_path, monkeypatch):
    deno = tmp_path / "deno"
    deno.write_text("#!/bin/sh\necho deno 2.9.9\n")
    deno.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with TemporaryDirectory(dir=bounds.scratch) as folder, opened(Path(folder), bounds, Budget(1, 1.0)) as ydl:
        assert not any(runtime.info for runtime in ydl._js_runtimes.values())  # asking for `info` would start it


@pytest.mark.parametrize("fetching, reason", [(False, "unavailable-video"), (True, "connection")])
def test_trouble_on_the_way_to_a_page_is_not_the_reason_that_a_video_is_private(fetching, reason):
    from yt_dlp.networking.exceptions import TransportError
    from yt_dlp.utils import DownloadError

    budget = Budget(1, 1.0, trouble=TransportError("an optional page did not come"))
    with pytest.raises(Rejected, match=reason), explained(budget, fetching):
        raise DownloadError("ERROR: [youtube] x: Private video")


def test_the_hosts_of_videos_are_known_by_their_whole_names():
    for url in ("https://www.youtube.com/watch?v=x", "https://youtu.be/x", "http://M.YouTube.com./watch"):
        assert is_video(url)
    for url in ("https://notyoutube.com/x", "https://youtube.com.evil.org/x", "file:///youtube.com", "http://[x"):
        assert not is_video(url)
    assert is_video("https://peertube.example/x", ("peertube.example",))
