"""From what a user calls a model to where it is, for every command and for Python.

A name is, in this order: a path that exists, a packaged model (:mod:`prod9.models.named.packaged`), or a repository
of the hub (:mod:`prod9.models.named.hub`). Nothing here imports torch.

Example:
    >>> from prod9.models.named.find import located
    >>> located("demo/translate").name
    'stage2'
"""

import difflib
from os import PathLike
from pathlib import Path

from prod9.errors import CheckpointError
from prod9.models.named import hub
from prod9.models.named.packaged import PACKAGED, PREFIX, Packaged, packaged_at, packaged_named
from prod9.system.machine import expand

Name = str | PathLike[str]


def located(name: Name) -> Path:
    """Return the path that ``name`` means, whether or not anything is there; a repository is fetched.

    Raises what :func:`prod9.models.named.hub.fetch` raises.
    """
    path = expand(Path(name))
    if _exists(path):
        return path
    text = Path(name).as_posix()
    if text.startswith(hub.PREFIX):
        return hub.fetch(text)
    packaged = packaged_named(text)
    return path if packaged is None else packaged.folder


def require_model(name: Name) -> Path:
    """Return the path that ``name`` means; CheckpointError where nothing is there.

    A path that is there but cannot be read is returned: whatever reads it gives the reason.
    """
    path = located(name)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path}: expected a run folder, a checkpoint or an export folder, got nothing there; {_remedy(name)}"
        ) from error
    except (OSError, ValueError):
        pass
    return path


def provenance(name: Name) -> str | None:
    """Return one line that a user of the model ``name`` should know: what it saw, or how to pin it; None for none."""
    path = located(name)
    packaged = packaged_at(path)
    if packaged is not None:
        return _saw(packaged)
    text = Path(name).as_posix()
    if text.startswith(hub.PREFIX) and not _exists(expand(text)) and not hub.parse(text).is_pinned:
        repo = hub.parse(text).repo
        return f"{text} is at commit {hub.commit_of(path)}; hf:{repo}@{hub.commit_of(path)} stays what it is."
    return None


def _saw(model: Packaged) -> str:
    text = f"{model.names[0]} saw simulated brains of {model.spacing_mm:g} mm voxels only"
    if model.minutes is None:
        return f"{text}."
    return (
        f"{text}: on real scans, expect soft results. To fit it to your own patients: "
        f"prod9 finetune --model {model.names[0]} --data DIR -o RUNS"
    )


def _remedy(name: Name) -> str:
    text = Path(name).as_posix()
    known = [one for model in PACKAGED.values() for one in model.names]
    close = difflib.get_close_matches(text, known, n=1, cutoff=0.75)
    if close:
        return f"did you mean {close[0]}?"
    if text.startswith(PREFIX):
        return f"packaged models are {', '.join(known)}."
    seen_from = "" if Path(name).is_absolute() else f", which is seen from {Path.cwd()}"
    return f"check the path{seen_from}, or train that stage first."


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:  # it may be there: whatever reads it gives the reason
        return True
    return True
