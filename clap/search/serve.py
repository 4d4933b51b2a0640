"""A local web page over an index: type a text or drop a sound, and hear what is near it.

Safe to leave open: only this machine is answered unless another host is named, and only to its own page; no request
names a file; uploads, texts and waiting searches are bounded; the page loads nothing from elsewhere and runs no text.
"""

import base64
import hashlib
import ipaddress
import re
import socket
import sys
import webbrowser
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clap.config import ClapError
from clap.search import api, sound

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from clap.model import CLAP
    from clap.search.index import Index
    from clap.systems import Foreign

LOOPBACK = "127.0.0.1"
POLICY = (  # a page may run and look like what stands in it, ask its own server, and play what it fetched
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SITES = ("same-origin", "none")  # what a browser says of requests by our own page, or by its user
HEADERS = {
    "Content-Security-Policy": POLICY.format(script="'none'", style="'none'"),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def serve(
    index: "Index", model: "CLAP | Foreign", host: str = LOOPBACK, port: int = 8000, browse: bool = False
) -> None:
    """Answer at http://host:port until Ctrl-C (KeyboardInterrupt); port 0 takes a free one, `browse` opens the page.

    Raises ConfigError if the index was made by another model.
    """
    uvicorn = require()
    index.check(model)
    app, listening = make_app(index, model, host), listen(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    if not is_local(host):
        print(f"Warning: whoever reaches {host} can search and hear these clips.", file=sys.stderr)
    print(f"{len(index):,} clips at {url} (Ctrl-C stops)", flush=True)
    if browse:
        webbrowser.open(url)  # the socket listens: its request waits for the server
    settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, limit_concurrency=64,
                              timeout_graceful_shutdown=3)  # fmt: skip
    uvicorn.Server(settings).run([listening])


def require() -> Any:
    """uvicorn; ClapError if it or FastAPI is not installed."""
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ClapError('the page needs FastAPI and uvicorn: pip install "clapboard[search]"') from error
    return uvicorn


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; ClapError says why there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ClapError(f"cannot serve at {host}, port {port} ({error}): give another --port or --host") from error


def is_local(host: str) -> bool:
    """Whether only this machine reaches a host."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def make_app(index: "Index", model: "CLAP | Foreign", host: str = LOOPBACK) -> "FastAPI":
    """The page and its API, for requests that are sent to `host` or this machine."""
    from fastapi import FastAPI

    app = FastAPI(title="Clapboard search", docs_url=None, redoc_url=None, description="Find sounds by text or sound.")
    add_guard(app, host)
    add_errors(app)
    api.add_search(app, index, model)
    api.add_clips(app, index)
    api.add_overview(app, index)
    add_pages(app, index.path.resolve().name)
    return app


def add_guard(app: "FastAPI", host: str) -> None:
    """Refuse what was sent to another name or by another site; tell the browser how little an answer may do."""
    from starlette.responses import JSONResponse

    @app.middleware("http")
    async def guard(request: "Request", answer: "Callable[[Request], Awaitable[Response]]") -> "Response":
        if not is_own(request.headers.get("host", ""), host):
            response: Response = JSONResponse({"error": "this server answers to its own address only"}, 421)
        elif request.url.path.startswith("/api") and request.headers.get("sec-fetch-site", "none") not in SITES:
            response = JSONResponse({"error": "other sites may not ask this server"}, 403)
        else:
            response = await answer(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response


def is_own(header: str, host: str) -> bool:
    """Whether a Host header is `host`, localhost or an address.

    Any other name could be one whose owner pointed it at this machine, so that their page may read our answers (DNS
    rebinding); an address can't be.
    """
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    return name in ("localhost", host.lower()) or is_address(name)


def add_errors(app: "FastAPI") -> None:
    """Every error is told as {"error": one sentence}."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    def tell(status: int, sentence: str) -> JSONResponse:
        return JSONResponse({"error": sentence}, status)

    @app.exception_handler(HTTPException)
    def refused(request: "Request", error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: "Request", error: RequestValidationError) -> JSONResponse:
        return tell(422, "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()))

    @app.exception_handler(sound.SoundError)
    def unfit(request: "Request", error: sound.SoundError) -> JSONResponse:
        return tell(400, str(error))

    @app.exception_handler(ClapError)
    def unreadable(request: "Request", error: ClapError) -> JSONResponse:
        return tell(500, str(error))

    @app.exception_handler(Exception)
    def broken(request: "Request", error: Exception) -> JSONResponse:
        return tell(500, "something went wrong here: see what the server printed")


def add_pages(app: "FastAPI", title: str) -> None:
    """The page for people, and the list of the API's endpoints, made from its OpenAPI description."""
    from starlette.responses import HTMLResponse

    def draw(template: str, **values: Any) -> HTMLResponse:
        html = render(template, **values)
        policy = POLICY.format(script=hashes(html, "script"), style=hashes(html, "style"))
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return draw("page.html.j2", title=title, characters=api.MOST_CHARACTERS, megabytes=api.MOST_BYTES >> 20)

    @app.get("/favicon.ico", status_code=204, include_in_schema=False)
    def icon() -> None:
        """None; browsers ask for one."""

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return draw("docs.html.j2", api=app.openapi())


def render(template: str, **values: Any) -> str:
    """A page of a template beside this file; values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    room = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return room.get_template(template).render(values)


def hashes(html: str, tag: str) -> str:
    """The hashes by which a policy knows the scripts or styles of a page."""
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
