"""The JSON API over an index: find clips by text, by sound or by a clip; what is known of them; what there is."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import numpy as np

from clap.data import DataError
from clap.search import sound
from clap.search.clips import Clip, Facets, Found, Map, clip, facets, kept
from clap.search.map import colours, read_map

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

    from clap.model import CLAP
    from clap.search.index import Index
    from clap.systems import Foreign

MOST_BYTES = 20 * 2**20  # of an upload
UPLOAD_SECONDS = 60
MOST_CHARACTERS = 500  # of a text
MOST_RESULTS = 100
WAITING = 8  # searches in hand or waiting; more are told to come again


def add_search(app: "FastAPI", index: "Index", model: "CLAP | Foreign") -> None:
    """The three ways to find clips. One search runs at a time, and few may wait for it."""
    from fastapi import HTTPException, Query
    from fastapi.concurrency import run_in_threadpool
    from starlette.requests import Request

    room, one = threading.BoundedSemaphore(WAITING), threading.Lock()
    Text = Annotated[str, Query(min_length=1, max_length=MOST_CHARACTERS, description="What to hear.")]
    Count = Annotated[int, Query(ge=1, le=MOST_RESULTS, description="How many results.")]
    Only = Annotated[str, Query(max_length=MOST_CHARACTERS, description="Only clips of this one.")]
    a_sound: dict[str, Any] = {"audio/*": {"schema": {"type": "string", "format": "binary"}}}
    upload = {"requestBody": {"required": True, "content": a_sound}}

    @contextmanager
    def place() -> Iterator[None]:
        if not room.acquire(blocking=False):
            raise HTTPException(503, "too many searches at once: try again in a moment", {"Retry-After": "1"})
        try:
            yield
        finally:
            room.release()

    def find(query: np.ndarray, k: int, keep: np.ndarray | None) -> list[Found]:
        (hits,) = index.search(query, k, keep)
        return [Found(**vars(clip(index, hit.row)), score=hit.score) for hit in hits]

    @app.get("/api/search", summary="Find clips by a text")
    def by_text(q: Text, k: Count = 12, source: Only = "", license: Only = "") -> list[Found]:
        with place(), one:
            return find(model.embed_text([q]), k, kept(index, source, license))

    @app.post("/api/search/audio", summary="Find clips by a sound, the body of the request", openapi_extra=upload)
    async def by_sound(request: Request, k: Count = 12, source: Only = "", license: Only = "") -> list[Found]:
        def work(content: bytes) -> list[Found]:
            with one:
                wave, rate = sound.decode(content)
                try:
                    query = model.embed_audio(wave, sample_rate=rate, truncation=index.config["truncation"])
                except DataError as error:
                    raise sound.SoundError(f"the sound cannot be searched with ({error}): give another one") from error
                return find(query, k, kept(index, source, license))

        content = await body(request)  # first, so that who sends slowly takes no place from others
        with place():
            return await run_in_threadpool(work, content)

    @app.get("/api/clips/{row}/similar", summary="Find clips that sound like one of the index")
    def by_clip(row: int, k: Count = 12, source: Only = "", license: Only = "") -> list[Found]:
        known(index, row)
        with place(), one:
            keep = kept(index, source, license)
            keep = np.ones(len(index), bool) if keep is None else keep
            keep[row] = False
            return find(index.embeddings([row]), k, keep)


async def body(request: "Request") -> bytes:
    """The body of a request, refused (HTTPException) as soon as it is too large or too slow."""
    from fastapi import HTTPException
    from starlette.requests import ClientDisconnect

    content = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for piece in request.stream():
                content += piece
                if len(content) > MOST_BYTES:
                    raise HTTPException(413, f"the sound has more than {MOST_BYTES >> 20} MB: cut it shorter")
    except (TimeoutError, ClientDisconnect) as error:
        raise HTTPException(408, f"the sound did not arrive within {UPLOAD_SECONDS} s: send it again") from error
    return bytes(content)


def add_clips(app: "FastAPI", index: "Index") -> None:
    """One clip: what is known of it, its sound, its picture. Sounds are read one at a time."""
    from fastapi import Response
    from fastapi.responses import FileResponse

    one = threading.Lock()
    shape = f"{sound.BANDS} rows of {sound.COLUMNS} bytes"

    @app.get("/api/clips/{row}", summary="What is known of a clip")
    def facts(row: int) -> Clip:
        return clip(index, known(index, row))

    @app.get("/api/clips/{row}/audio", summary="The sound of a clip", response_class=Response)
    def audio(row: int) -> Response:
        id = clip(index, known(index, row)).id
        if (file := index.file(row)) and file[1] in sound.PLAYED:  # as large as it may be: it is never held
            return FileResponse(file[0], media_type=file[1], headers=named(id, file[1]))
        with one:
            content, kind = sound.playable(*whole(index, row))
        return Response(content, media_type=kind, headers=named(id, kind))

    @app.get("/api/clips/{row}/spectrogram", summary=f"Its spectrogram: {shape}, grey", response_class=Response)
    def spectrogram(row: int) -> Response:
        known(index, row)
        with one:
            grey = sound.spectrogram(*sound.decode(whole(index, row)[0]))
        return Response(grey.tobytes(), media_type="application/octet-stream")


def named(id: str, kind: str) -> dict[str, str]:
    """The header by which a browser saves a clip under its id."""
    name = quote(f"{id}.{kind.removeprefix('audio/')}", safe="")
    return {"Content-Disposition": f"inline; filename*=UTF-8''{name}"}


def whole(index: "Index", row: int) -> tuple[bytes, str]:
    """A clip's bytes and media type; SoundError if its file is too large to be decoded."""
    if (file := index.file(row)) and file[0].stat().st_size > sound.MOST_BYTES:
        raise sound.SoundError(f"the clip has more than {sound.MOST_BYTES >> 20} MB: too large to be decoded here")
    return index.audio(row)


def known(index: "Index", row: int) -> int:
    """The row if the index has it; else an error 404."""
    from fastapi import HTTPException

    if not 0 <= row < len(index):
        raise HTTPException(404, f"there is no clip {row}: the index holds 0 to {len(index) - 1}")
    return row


def add_overview(app: "FastAPI", index: "Index") -> None:
    """What the index holds, and its map, drawn when it is first asked for and kept in the index's folder."""
    counted, one = facets(index), threading.Lock()

    @app.get("/api/facets", summary="What the index holds: sources, licences, texts to try")
    def overview() -> Facets:
        return counted

    @app.get("/api/map", summary="Clips as points of a plane, near ones sound alike")
    def plane() -> Map:
        with one:
            rows, points = read_map(index)
        groups, group = colours(index.table, rows)
        x, y = points.astype(float).round(4).T.tolist()
        return Map(rows.tolist(), x, y, group, groups)
