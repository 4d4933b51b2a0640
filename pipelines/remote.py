"""Object storage and the Hugging Face Hub as inputs, and as places for a dataset, through fsspec.

hf://, s3://, gs://, gcs://, az://, abfs://. A URL names a bucket or repository, never a host: where a service is, and
with which credentials, comes from the environment alone (HF_ENDPOINT, AWS_ENDPOINT_URL, ...), so a table cannot make
a build connect elsewhere.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pipelines.clip import Rejected
from pipelines.disk import BuildError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# scheme: the package that reads it, and the extra that installs that package
PROTOCOLS = {
    "hf": ("huggingface_hub", ""), "s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs"),
    "az": ("adlfs", "az"), "abfs": ("adlfs", "az"),
}  # fmt: skip
OPENING: dict[str, dict[str, Any]] = {"hf": {"block_size": 0}}  # as one stream: one request a file

# What the libraries below call their errors, first match decides; they share no base class.
NAMES = (
    (r"Timeout", "timeout"),
    (r"Credential|Auth|Permission|Forbidden|Profile|RefreshError", "missing-file"),
    (r"FileNotFound|NotFoundError|IsADirectory", "missing-file"),
    (r"Connect|Disconnect|Transport|Payload|gaierror|IncompleteRead|Service(Request|Response)Error", "connection"),
    (r"ValueError|NotImplementedError", "unsupported-url"),  # no key, no repository
)

STATUS = ("status_code", "status", "code")  # where Azure, aiohttp and gcsfs note it on the error itself


def is_remote(text: str) -> bool:
    """Whether an input or a location is on storage that this module reads."""
    return text.partition("://")[0] in PROTOCOLS and "://" in text


@contextmanager
def open_remote(url: str) -> Iterator[BinaryIO]:
    """A remote file's bytes, forwards; raises Rejected, also while it is read."""
    with told():
        files, path = filesystem(url)
        handle = files.open(path, "rb", **OPENING.get(url.partition("://")[0], {}))
    with handle, Told(handle) as reader:
        yield cast(BinaryIO, reader)


class Told(io.RawIOBase):
    """A remote file whose errors are Rejected; those of who reads it stay their own."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        target = memoryview(buffer).cast("B")
        with told():
            data = self.handle.read(len(target))
        target[: len(data)] = data
        return len(data)


def list_remote(url: str) -> Iterator[tuple[str, int]]:
    """(URL, bytes) of every file below a URL, in the order of names; raises BuildError if it cannot be listed."""
    try:
        with told():
            files, path = filesystem(url)
            found = files.find(path, detail=True)
    except Rejected as why:
        raise BuildError(f"cannot list {url}: {why.reason}: {why.detail}") from why
    for name in sorted(found):
        yield f"{url.partition('://')[0]}://{name}", found[name]["size"]


def upload(out: Path, url: str) -> None:
    """Copy what the build in `out` publishes to storage, the card last: a dataset there with a card is complete.

    Shards of an earlier build go. Raises BuildError, after which the same command continues.
    """
    card = "dataset/README.md"
    shards = sorted(f"dataset/data/{path.name}" for path in (out / "dataset/data").glob("*.parquet"))
    try:
        with told():
            files, _ = filesystem(url)
            root = files._strip_protocol(url).rstrip("/")  # as the storage's own names begin
            there = {name.removeprefix(f"{root}/") for name in files.find(f"{root}/dataset")}
            for name in sorted(there - set(shards)):
                files.rm_file(f"{root}/{name}")
            for name in [*shards, "dataset/ATTRIBUTION.csv", "rejected.parquet", "report.json", "report.html", card]:
                files.put_file(str(out / name), f"{root}/{name}")
                files.invalidate_cache()
                if files.info(f"{root}/{name}")["size"] != (out / name).stat().st_size:
                    raise BuildError(f"{url}/{name} did not arrive whole: run the same command again")
    except Rejected as why:
        raise BuildError(f"cannot write to {url}: {why.reason}: {why.detail}") from why


def filesystem(url: str) -> tuple[Any, str]:
    """The file system and the path in it; raises Rejected for a scheme not admitted, BuildError for a missing extra."""
    import fsspec

    scheme, _, path = url.partition("://")
    if not is_remote(url) or "::" in url or not path:
        raise Rejected("unsupported-url", f"cannot read {scheme}://: want one of {', '.join(PROTOCOLS)}")
    package, extra = PROTOCOLS[scheme]
    try:
        return fsspec.filesystem(scheme), path.rstrip("/")
    except ImportError as error:
        raise BuildError(f"{scheme}:// needs {package}: pip install 'clapboard[{extra}]'") from error


@contextmanager
def told() -> Iterator[None]:
    """Within, an error of a storage library becomes Rejected with its reason; any other stays what it is."""
    try:
        yield
    except (Rejected, BuildError, ImportError):
        raise
    except Exception as error:
        reason = reason_of(error)
        if not reason:
            raise
        raise Rejected(reason, f"{type(error).__name__}: {error}") from error


def reason_of(error: BaseException) -> str:
    """The reason for which a storage library failed, by its status or its class's name; "" for other errors."""
    status = status_of(error)
    if status in (401, 403, 404):
        return "missing-file"
    if 400 <= status < 600:
        return f"http-{status}"
    kinds = [kind.__name__ for kind in type(error).__mro__]
    reasons = (reason for kind in kinds for names, reason in NAMES if re.search(names, kind))
    return next(reasons, "") or (reason_of(error.__cause__) if error.__cause__ else "")


def status_of(error: BaseException) -> int:
    """The HTTP status behind an error, however its library carries it; 0 without."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    carried = [getattr(response, "status_code", None), *(getattr(error, name, None) for name in STATUS)]
    return next((status for status in carried if isinstance(status, int)), 0)
