"""The Hugging Face hub: reachability, fetching prompts, pushing prompts."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .errors import CoopError, UsageError
from .files import CARD_FILE, HEAD_FILE, PROMPT_FILE, TUNED_FOLDER

TIMEOUT = 3.0  # seconds
# user/name or user/name@revision, by the hub's rules for names and git's for branches, tags and commits.
HUB_ID = re.compile(r"(?=.{3,250}$)(?P<repo>NAME/NAME)(@(?P<revision>[\w./-]+))?".replace("NAME", r"\w+([.-]\w+)*"), re.ASCII)
PROMPT_FILES = (PROMPT_FILE, HEAD_FILE, f"{TUNED_FOLDER}/*")


@dataclass(frozen=True)
class Pushed:
    """The result of a push: the page that shows it, the commit, and the files sent."""

    url: str
    commit: str
    files: tuple[str, ...]


def prepare_hub() -> None:
    """Switch the hub's clients to offline mode when the hub cannot be reached.

    Otherwise they retry for half a minute. Behind a proxy nothing is checked: only the clients can tell.
    """
    if os.environ.get("HF_HUB_OFFLINE") or any(name.lower() in ("https_proxy", "all_proxy") for name in os.environ):
        return
    address = urlsplit(_endpoint())
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=TIMEOUT).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        for name in ("huggingface_hub.constants", "datasets.config"):
            if name in sys.modules:  # imported already, as it may be from Python
                sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def prompt_path(source: str) -> Path:
    """Resolve a PROMPT argument: a local path, else `user/name` or `user/name@revision` on the hub.

    Only the prompt's own files are fetched, into the hub's cache, where they can be used offline later.
    Raises UsageError for an unknown repository or revision, CoopError when the download fails.
    A missing path that cannot be a hub name is returned unchanged.
    """
    match = HUB_ID.fullmatch(source)
    if not match or source.endswith(".safetensors") or Path(source).exists():
        return Path(source)
    repo = match["repo"]
    with _asking(repo, match["revision"]):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo, revision=match["revision"], allow_patterns=list(PROMPT_FILES)))
    if not any((folder / name).is_file() for name in PROMPT_FILES):
        raise CoopError(f'"{repo}" on the hub contains no coop prompt (no {PROMPT_FILE})')
    return folder


def push(files: Mapping[str, Path], card: str, target: str, message: str, private: bool = False) -> Pushed:
    """Upload a prompt's files (by their names in the repository) and its card to `user/name` or `user/name@branch`.

    Creates the repository and the branch if needed. Raises UsageError for an invalid name, without a login, and for a
    public repository that should be `private`; CoopError when the hub refuses.
    """
    match = HUB_ID.fullmatch(target)
    if not match:
        raise UsageError(f'"{target}" is not a hub name; write user/name or user/name@branch')
    repo, branch = match["repo"], match["revision"]
    with _asking(repo, branch):
        from huggingface_hub import CommitOperationAdd, HfApi, get_token

        if get_token() is None:
            raise UsageError("pushing needs a login: `hf auth login`, or a token with write access in HF_TOKEN")
        api = HfApi()
        url: str = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UsageError(
                f'"{repo}" already exists and is public; make it private on {url}/settings, or leave out --private'
            )
        if branch:
            api.create_branch(repo, branch=branch, exist_ok=True)
        sent: dict[str, Path | bytes] = {CARD_FILE: card.encode(), **files}
        additions = [CommitOperationAdd(name, content) for name, content in sent.items()]
        commit = api.create_commit(repo, additions, commit_message=message, revision=branch)
    return Pushed(f"{url}/tree/{branch}" if branch else url, commit.oid, tuple(sent))


@contextmanager
def _asking(repo: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the hub's client raises into one line."""
    prepare_hub()
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        yield
    except CoopError:
        raise
    except Exception as error:
        raise _why(error, repo, revision) from error


def _why(error: Exception, repo: str, revision: str | None) -> CoopError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return CoopError(f'"{repo}" is gated: ask for access on {_endpoint()}/{repo}, then log in (`hf auth login`)')
    if isinstance(error, RepositoryNotFoundError):
        return UsageError(
            f'"{repo}" is neither a path here nor a model repository on the hub that you may see '
            "(a private one needs `hf auth login` or HF_TOKEN)"
        )
    if isinstance(error, RevisionNotFoundError):
        return UsageError(f'"{repo}" on the hub has no branch, tag or commit "{revision}"')
    missing, cause = "", error
    if isinstance(error, LocalEntryNotFoundError):
        missing = f'"{repo}" is neither a path here nor in the cache of the hub, and '
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(cause, HfHubHTTPError):
        said = f": {cause.server_message.splitlines()[0]}" if cause.server_message else ""
        hint = " (see `hf auth whoami`)" if cause.response.status_code in (401, 403) else ""
        return CoopError(f'{missing}{_endpoint()} answered {cause.response.status_code} for "{repo}"{said}{hint}')
    if missing or isinstance(cause, ConnectionError):
        return CoopError(f"{missing}{_endpoint()} cannot be reached")
    return CoopError(f'"{repo}": {next(iter(str(error).splitlines()), type(error).__name__)}')


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
