"""Publish a dataset on the Hugging Face Hub: all of it, checked first, and never under a licence it does not have.

An upload that was stopped goes on where it was: what the Hub holds already is not sent again. It goes through
huggingface_hub's `upload_folder`, which keeps no state on disk and commits the files together (in several commits
beyond about 250 files or 5 minutes), so that a reader sees the old dataset or the new one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.disk import BuildError
from pipelines.licenses import restrictions
from pipelines.verify import check_cheap, find_dataset, read_front, shards

STALE = ["data/*-?????-of-?????.parquet"]  # those of an earlier push go, if this one has others
TOKEN = "run `hf auth login`, or set HF_TOKEN, with a token that may write (https://hf.co/settings/tokens)"


def push(out: Path, repository: str, private: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Upload a build's dataset (or a dataset's folder) to `user/name`; run again, it sends only what is missing.

    Returns the files with their bytes, and where they are now. Raises BuildError for a dataset that is incomplete,
    wrong or under a card more permissive than its clips, and where the Hub refuses. `dry_run` opens no network.
    """
    dataset = find_dataset(out)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise BuildError(f"{repository!r} is no name of a repository: want user/name")
    check(out, dataset)
    files = {str(path.relative_to(dataset)): path.stat().st_size for path in published_files(dataset)}
    plan = {
        "repository": repository,
        "files": [{"path": path, "bytes": size} for path, size in files.items()],
        "bytes": sum(files.values()),
        "dry_run": dry_run,
    }
    return plan if dry_run else plan | upload(dataset, repository, list(files), private)


def check(out: Path, dataset: Path) -> None:
    """Raise BuildError for a dataset that must not be published."""
    front = read_front(dataset)
    if problems := check_cheap(out):
        first = f"{problems[0]['where']} {problems[0]['what']}"
        raise BuildError(f"{first} ({len(problems)} problems in all): see `verify`, repair or build again, then push")
    if not shards(dataset):
        raise BuildError(f"{dataset} holds no clip: nothing to push")
    check_license(dataset, front)


def published_files(dataset: Path) -> list[Path]:
    """The files of a dataset, without hidden ones (what a killed process left, caches)."""
    found = sorted(path for path in dataset.rglob("*") if path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(dataset).parts)]


def check_license(dataset: Path, front: dict[str, Any]) -> None:
    """Raise BuildError if the card asks for less than the clips' licences do, as the shards themselves state them."""
    path, stated = dataset / "README.md", front.get("license")
    names = [str(name) for name in (stated if isinstance(stated, list) else [stated]) if name]
    if names == ["other"]:
        names = [str(front.get("license_name") or "")]
    if not any(names):
        raise BuildError(f"{path} states no licence: build again to have one written, then push")
    asked = frozenset[str]().union(*map(asks, names))
    for license, clips in sorted(count_licenses(dataset).items()):
        if asked != {"unknown"} and (more := restrictions(license) - asked):
            raise BuildError(
                f"{path} says {' and '.join(names)}, but {clips} clips are under {license or 'no stated licence'} "
                f"({', '.join(sorted(more))}): leave them out with --licenses, or state a licence that asks for it"
            )


def asks(name: str) -> frozenset[str]:
    """What a card's licence asks for: of "mixed-attribution-noncommercial" it stands in the name.

    Only "unknown" stands for a licence that is none of those we know; such a card promises nobody anything.
    """
    if name.split("-")[0] == "mixed":
        return frozenset(name.split("-")[1:])
    return restrictions(name)


def count_licenses(dataset: Path) -> dict[str, int]:
    """Clips by licence, read from the shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [path for split in shards(dataset).values() for path in split]
    if not paths:
        return {}
    column = pa.concat_tables([pq.read_table(path, columns=["license"]) for path in paths])["license"]
    return {each["values"].as_py() or "": each["counts"].as_py() for each in column.value_counts()}


def upload(dataset: Path, repository: str, files: list[str], private: bool) -> dict[str, Any]:
    """Send the files; returns the repository's address and the commit that holds them."""
    from glob import escape

    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise BuildError(f"no token for the Hub: {TOKEN}")
    api = HfApi()
    with told(repository):
        url = api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.dataset_info(repository).private:
            raise BuildError(f"{url} exists and is public: make it private in its settings, or choose another name")
        commit = api.upload_folder(
            folder_path=dataset,
            repo_id=repository,
            repo_type="dataset",
            allow_patterns=[escape(file) for file in files],
            delete_patterns=STALE,
            commit_message="Upload dataset with Clapboard",
        )
    return {"url": str(url), "commit": commit.oid}


@contextmanager
def told(repository: str) -> Iterator[None]:
    """Turn what the Hub and the way to it refuse into BuildError, without addresses, which may be signed."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # of the network, hf_xet, a single file's upload
        cause = error if isinstance(error, HfHubHTTPError) else error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            raise BuildError(refusal(repository, cause.response.status_code, cause.server_message)) from error
        text = re.sub(r"https?://\S+", "(address)", str(cause)) or type(cause).__name__
        raise BuildError(f"the upload to {repository} stopped: {text}: push again to send what is missing") from error


def refusal(repository: str, status: int, said: str | None) -> str:
    """What an HTTP status of the Hub means, and what to do."""
    if status == 401:
        return f"the Hub does not know the token: {TOKEN}"
    if status == 403:
        return f"the token may not write to {repository}: {TOKEN}, or push to a name of your own"
    if status == 404:
        return f"the Hub knows no {repository}, or the token may not see it: check the name and the token's scope"
    return f"the Hub refused the upload to {repository} with status {status} ({said or 'no reason'}): push again later"
