"""Publish a dataset on the Hugging Face Hub: all of it, checked first, and never under a licence it does not have.

An upload that was stopped goes on where it was: what the Hub holds already is not sent again. It goes through
huggingface_hub's `upload_folder`, which keeps no state on disk and makes several commits of more than about 250 files
or 5 minutes. The card comes last, in one commit that also takes away the shards of an earlier push: a dataset that is
new on the Hub has a card once it is whole; one that is replaced holds shards of both until then.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.disk import BuildError
from pipelines.verify import check_cheap, find_dataset, shards

CARD = "README.md"
SHARD = re.compile(r"data/[^/]*-\d{5}-of-\d{5}\.parquet")  # those of an earlier push go, if this one has others
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
    if problems := check_cheap(out):
        first = f"{problems[0]['where']} {problems[0]['what']}"
        raise BuildError(f"{first} ({len(problems)} problems in all): see `verify`, repair or build again, then push")
    if not shards(dataset):
        raise BuildError(f"{dataset} holds no clip: nothing to push")


def published_files(dataset: Path) -> list[Path]:
    """The files of a dataset, without hidden ones (what a killed process left, caches)."""
    found = sorted(path for path in dataset.rglob("*") if path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(dataset).parts)]


def upload(dataset: Path, repository: str, files: list[str], private: bool) -> dict[str, Any]:
    """Send the files, the card last; returns the repository's address and the commit that holds them."""
    from glob import escape

    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if not get_token():
        raise BuildError(f"no token for the Hub: {TOKEN}")
    api = HfApi()
    with told(repository):
        url = api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.dataset_info(repository).private:
            raise BuildError(f"{url} exists and is public: make it private in its settings, or choose another name")
        api.upload_folder(
            folder_path=dataset,
            repo_id=repository,
            repo_type="dataset",
            allow_patterns=[escape(file) for file in files if file != CARD],
            commit_message="Upload dataset with Clapboard",
        )
        there = api.list_repo_files(repository, repo_type="dataset")
        stale = [file for file in there if SHARD.fullmatch(file) and file not in files]
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(CARD, dataset / CARD), *map(CommitOperationDelete, stale)],
            repo_type="dataset",
            commit_message="Upload card with Clapboard",
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
