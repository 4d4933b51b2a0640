"""The results of a search of Freesound's API, page after page.

The API key comes from the environment variable FREESOUND_TOKEN and goes into a header, to freesound.org alone.
"""

import json
import os
import time
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from pipelines.disk import BuildError
from pipelines.guard import Forbidden, guarded
from pipelines.text import clean

FIELDS = "id,name,tags,description,username,license,duration,samplerate,channels,type,url,previews"
PAGE_SIZE = 150  # results, the most that it gives
TIMEOUT = 60.0  # s
ATTEMPTS = 5
PAUSE = 1.0  # s before the second attempt, doubled with each
LONGEST_PAUSE = 600.0  # s that the server may ask for; its limits for a day are longer
LARGEST_PAGE = 64 * 2**20  # bytes
APPLY = "https://freesound.org/apiv2/apply"


def search(url: str, private: bool = False) -> Iterator[dict[str, Any]]:
    """The results as published; BuildError without a key or if a page cannot be had.

    `private` admits addresses of private networks, for tests.
    """
    token, page, seen = read_token(), first_page(url, private), set()
    while page:
        seen.add(page)
        answer = fetch(page, token, private)
        yield from answer["results"]
        page = next_page(page, answer.get("next"))
        if page in seen:
            raise BuildError(f"the search leads back to its page {page}: run the same command again later")


def read_token() -> str:
    """The API key; BuildError if there is none that a header can hold."""
    token = os.environ.get("FREESOUND_TOKEN", "").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise BuildError(f"searching Freesound needs an API key: get one at {APPLY} and set FREESOUND_TOKEN to it")
    return token


def first_page(url: str, private: bool) -> str:
    """The search with the fields that we read and the largest pages; BuildError if it is no search or holds a key.

    Nor may it be of another host or in the clear, where the key would be read along.
    """
    parts = urlsplit(url)
    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "token" in asked or parts.username:
        raise BuildError("the API key must not stand in the URL, which is kept: set FREESOUND_TOKEN to it instead")
    here = private or (parts.scheme, parts.netloc.lower()) == ("https", "freesound.org")
    if not here or not parts.path.startswith("/apiv2/search"):
        raise BuildError(f"{url} is no search: want https://freesound.org/apiv2/search/?query=...&filter=...")
    query = urlencode(asked | {"fields": FIELDS, "page_size": str(PAGE_SIZE)})
    return parts._replace(query=query, fragment="").geturl()


def next_page(page: str, following: Any) -> str:
    """The address of the next page at the host of this one, whatever host the answer names; "" after the last."""
    if not isinstance(following, str) or not following:
        return ""
    here, there = urlsplit(page), urlsplit(urljoin(page, following))
    return there._replace(scheme=here.scheme, netloc=here.netloc, fragment="").geturl()


def fetch(page: str, token: str, private: bool) -> dict[str, Any]:
    """The JSON of one page, asked for again after a pause where that may help; raises BuildError."""
    for again in range(ATTEMPTS):
        pause = PAUSE * 2**again
        try:
            return read_page(page, token, private)
        except HTTPError as error:
            why = f"status {error.code} {clean(str(error.reason))[:100]}"
            if error.code in (401, 403):
                raise BuildError(f"Freesound refuses the key in FREESOUND_TOKEN ({why}): see {APPLY}") from None
            if error.code != 429 and error.code < 500:
                raise BuildError(f"Freesound does not answer {page}: {why}: check the search") from None
            pause = max(pause, requested(error))
        except (OSError, HTTPException) as error:
            if isinstance(getattr(error, "reason", error), Forbidden):
                raise BuildError(f"{page} is at a private address, which is not asked") from error
            why = str(getattr(error, "reason", error))
        if again + 1 < ATTEMPTS:
            time.sleep(pause)
    raise BuildError(f"Freesound does not answer {page}: {why}, {ATTEMPTS} times: run the same command again later")


def requested(error: HTTPError) -> float:
    """Seconds that the server asks to wait; BuildError if that is too long to sit through."""
    from pipelines.web import asked

    wait = asked(error.headers.get("Retry-After", ""))
    if wait > LONGEST_PAUSE:
        raise BuildError(f"Freesound asks to wait {wait / 3600:.1f} hours: run the same command again then") from error
    return wait


def read_page(page: str, token: str, private: bool) -> dict[str, Any]:
    """One request and its answer; raises what urllib does, and BuildError for what is no page of results."""
    opener = build_opener(ProxyHandler({}), SameHost())
    request = Request(page, headers={"Authorization": f"Token {token}", "User-Agent": "clapboard"})
    with guarded(private), opener.open(request, timeout=TIMEOUT) as response:
        body = response.read(LARGEST_PAGE + 1)
    try:
        answer = json.loads(body) if len(body) <= LARGEST_PAGE else None
    except (ValueError, RecursionError):
        answer = None
    results = answer.get("results") if isinstance(answer, dict) else None
    if answer is None or not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise BuildError(f"what came from {page} is no page of results: check the search")
    return answer


class SameHost(HTTPRedirectHandler):
    """Follows a redirect only within the host, since the key goes along."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """The request to make next; BuildError for one to another place."""
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            raise BuildError(f"{req.full_url} leads to another host: the API key stays here; check the search")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
