"""Where the earlier stages are that a checkpoint was trained on, and a run's own copies of them."""

import os
from pathlib import Path
from typing import Any

from prod9.errors import CheckpointError
from prod9.models import export as exports
from prod9.models.checkpoint_file import link_checkpoint, recorded_sha256
from prod9.models.run_folder import CHECKPOINTS, INPUTS
from prod9.models.run_folder import write_index as write_index


def describe_input(path: Path, sha256: str, base: Path) -> dict[str, str]:
    """Return the record of an earlier stage: where it is, where it is seen from ``base``, and its hash."""
    path, base = path.resolve(), base.resolve()
    return {"path": str(path), "relative": Path(os.path.relpath(path, base)).as_posix(), "sha256": sha256}


def keep_input(path: Path, name: str, run: Path) -> None:
    """Keep the checkpoint ``path``, which ``run`` builds on as its ``name``, in the run's own folder.

    Training the earlier stage on replaces and deletes its checkpoints. Where both lie on one file system the copy is a
    second name of the same file and takes no room. An export is left where it is: nothing changes those.
    """
    if path.is_file():
        target = _own_copy(run, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_checkpoint(path, target)


def recorded_places(path: Path, recorded: dict[str, str], name: str) -> list[Path]:
    """Return where the earlier stage ``name`` of the checkpoint ``path`` may be, the first choice first.

    Where it was, as far from the run as then, and the run's own copy of it.
    """
    inside = path.parent.name in (CHECKPOINTS, INPUTS)
    run = path if path.is_dir() else path.parent.parent if inside else path.parent
    places = [Path(recorded["path"]), run / recorded["relative"], _own_copy(run, name)]
    return [place for position, place in enumerate(places) if position or place.is_absolute()]


def _own_copy(run: Path, name: str) -> Path:
    # No ``.ckpt``: who lists those of a run wants none of other stages.
    return run / INPUTS / f"{name}.pt"


def find_recorded(path: Path, header: Any, name: str) -> Path | None:
    """Return where the earlier stage ``name`` is that the checkpoint ``path`` was trained on; None if it is nowhere.

    header: of ``path``. A place that holds another file by now is passed over.
    """
    recorded = header["inputs"].get(name)
    if recorded is None:
        return None
    places = recorded_places(path, recorded, name)
    return next((place for place in places if sha256_at(place) == recorded["sha256"]), None)


def named_place(path: Path, header: Any, name: str) -> Path | None:
    """Return the same for a command that loads it, and the file that it refuses where the user's own was changed.

    A run's checkpoint that training has replaced since is passed over, for the run may have its own copy.
    """
    recorded = header["inputs"][name]
    for place in recorded_places(path, recorded, name):
        found = sha256_at(place)
        if found == recorded["sha256"] or (
            found is not None and place.parent.name not in (CHECKPOINTS, INPUTS)
        ):
            return place
    return None


def sha256_at(place: Path) -> str | None:
    """Return the recorded hash of a checkpoint or an export, None where there is neither."""
    try:
        if exports.is_export(place):
            return exports.recorded_sha256(place)
        return recorded_sha256(place) if place.is_file() else None
    except (OSError, CheckpointError):
        return None
