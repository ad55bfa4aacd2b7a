"""Exports in repositories of the Hugging Face hub, as ``hf:org/model@revision``.

Only weights as safetensors, JSON and model cards are fetched, so nothing that could hold code is. Loading compares
each file with the SHA-256 in the export's manifest. A revision that is a whole commit names the content for good, and
needs no network once it is in the cache (``HF_HUB_CACHE``, ``HF_HOME``); ``HF_HUB_OFFLINE=1`` never asks the network.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from prod9.errors import CheckpointError, ConfigError, MissingDependencyError

PREFIX = "hf:"
INSTALL = "pip install 'prod9[hub]'"
FETCHED = ("*.safetensors", "*.json", "*.md")
"""Files that are fetched; in subfolders too, where an export keeps what it builds on."""
_FORM = re.compile(r"hf:(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
_PATIENCE_S = 10
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Reference:
    """A repository, and the branch, tag or commit in it; None for its main branch."""

    repo: str
    revision: str | None

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a whole commit, whose content never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def parse(name: str) -> Reference:
    """Read ``hf:org/model`` or ``hf:org/model@revision``; ConfigError for anything else."""
    match = _FORM.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{name}: expected hf:ORGANISATION/MODEL or hf:ORGANISATION/MODEL@REVISION; correct the name."
        )
    return Reference(match["repo"], match["revision"])


@cache
def fetch(name: str) -> Path:
    """Return the export folder of ``name`` in the cache, fetched if it is not there.

    A process asks for each name once, so that the content cannot change below a command.

    Raises:
        MissingDependencyError: without the extra ``hub``.
        CheckpointError: where there is no such repository or revision, it holds no export, or it is not in the cache
            and the network cannot be reached.
    """
    reference, hub = parse(name), hub_library()
    cached = _cached(hub, reference)
    if cached is not None and reference.is_pinned:
        return cached
    try:
        # Fails at once without a network, where the download would try again for half a minute.
        hub.HfApi().repo_info(reference.repo, revision=reference.revision, timeout=_PATIENCE_S)
        folder = Path(
            hub.snapshot_download(
                reference.repo, revision=reference.revision, allow_patterns=[*FETCHED], max_workers=2
            )
        )
    except Exception as error:  # the library's own, its HTTP library's, and the system's
        if cached is not None and not isinstance(error, hub.errors.HfHubHTTPError):
            return cached
        raise CheckpointError(_refusal(hub, name, error)) from error
    if not _is_whole(folder):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:4]) or "nothing"
        raise CheckpointError(
            f"{name}: expected an export of prod9 (model.safetensors, config.json, manifest.json), got {found}; "
            "name a repository that `prod9 export --push` wrote."
        )
    return folder


def commit_of(folder: Path) -> str:
    """Return the commit of what :func:`fetch` returned."""
    return folder.name


def hub_library() -> Any:
    """Return the module ``huggingface_hub``; MissingDependencyError without it."""
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise MissingDependencyError(
            f"huggingface_hub: expected it installed, for hf: names and --push, got none; {INSTALL}"
        ) from error


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Send the export ``folder`` to the repository ``repo``, made if there is none; return its name with the commit.

    Args:
        folder: of the export; files of other kinds than :data:`FETCHED` stay here.
        repo: ``org/model``, with or without ``hf:`` before it.
        private: whether a new repository is one that only its owners see.

    Raises MissingDependencyError without the extra ``hub``, ConfigError for a name of another form, CheckpointError
    where the hub refuses or cannot be reached.
    """
    reference, hub = parse(repo if repo.startswith(PREFIX) else PREFIX + repo), hub_library()
    try:
        api = hub.HfApi()
        api.create_repo(repo_id=reference.repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=str(folder),
            repo_id=reference.repo,
            revision=reference.revision,
            allow_patterns=[*FETCHED],
            commit_message="Add a model exported by prod9",
        )
    except Exception as error:  # the library's own, its HTTP library's, and the system's
        first = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"--push {reference.repo}: expected a repository that you may write, got {type(error).__name__} ({first}); "
            f"log in with `hf auth login`, or check the name."
        ) from error
    return f"{PREFIX}{reference.repo}@{commit.oid}"


def _cached(hub: Any, reference: Reference) -> Path | None:
    """Return the export in the cache; None where there is none, or it was not fetched to its end."""
    try:
        found = hub.snapshot_download(reference.repo, revision=reference.revision, local_files_only=True)
    except hub.errors.LocalEntryNotFoundError:
        return None
    return Path(found) if _is_whole(Path(found)) else None


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("model.safetensors", "config.json", "manifest.json"))


def _refusal(hub: Any, name: str, error: Exception) -> str:
    errors = hub.errors
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: expected a branch, tag or commit of that repository, got none; check what follows @."
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name}: expected a repository that you may read, got one whose terms you have not accepted; accept them "
            "on its page, log in with `hf auth login`, and try again."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: expected a repository of the hub, got none; check the name, or log in if it is private."
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return f"{name}: could not be written to the cache ({error}); set HF_HUB_CACHE to a folder that you may fill."
    return (
        f"{name}: expected it in the cache, or a network, got neither; connect once and run the command again, or copy "
        "the export here and name its folder."
    )
