"""Where the bases of a checkpoint are, and a run's own copies of them."""

import os
from pathlib import Path
from typing import Any

from prod9.errors import CheckpointError
from prod9.models import export as exports
from prod9.models.checkpoint_file import link_checkpoint, recorded_sha256
from prod9.models.named.find import located
from prod9.models.named.packaged import packaged_with
from prod9.models.run_folder import CHECKPOINTS, INPUTS
from prod9.models.run_folder import write_index as write_index


def describe_input(path: Path, sha256: str, base: Path) -> dict[str, str]:
    """Return the record of a base: its path, its path relative to ``base``, and its hash."""
    path, base = path.resolve(), base.resolve()
    return {"path": str(path), "relative": Path(os.path.relpath(path, base)).as_posix(), "sha256": sha256}


def keep_input(path: Path, name: str, run: Path) -> None:
    """Keep the checkpoint ``path``, the base ``name`` of ``run``, in the run's own folder.

    Training the base further replaces and deletes its checkpoints. On one file system the copy is a second name of the
    same file and takes no space. An export stays where it is, since exports are never changed.
    """
    if path.is_file():
        target = _own_copy(run, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_checkpoint(path, target)


def recorded_places(path: Path, recorded: dict[str, str], name: str) -> list[Path]:
    """Return where the base ``name`` of the checkpoint ``path`` may be, the first choice first.

    That is: its recorded path, its recorded path relative to the run, the run's own copy, and the packaged model of
    its SHA-256, which is elsewhere on another computer.
    """
    inside = path.parent.name in (CHECKPOINTS, INPUTS)
    run = path if path.is_dir() else path.parent.parent if inside else path.parent
    places = [Path(recorded["path"]), run / recorded["relative"], _own_copy(run, name)]
    packaged = packaged_with(recorded["sha256"])
    places += [] if packaged is None else [packaged.folder]
    return [place for position, place in enumerate(places) if position or place.is_absolute()]


def _own_copy(run: Path, name: str) -> Path:
    # No ``.ckpt``: who lists those of a run wants none of other stages.
    return run / INPUTS / f"{name}.pt"


def find_recorded(path: Path, header: Any, name: str) -> Path | None:
    """Return where the base ``name`` of the checkpoint ``path`` is; None if it is nowhere.

    header: that of ``path``. A place that holds another file by now is passed over.
    """
    recorded = header["inputs"].get(name)
    if recorded is None:
        return None
    places = recorded_places(path, recorded, name)
    return next((place for place in places if sha256_at(place) == recorded["sha256"]), None)


def named_place(path: Path, header: Any, name: str) -> Path | None:
    """Return where a command finds the base ``name``, which may be a file that it then refuses because it was changed.

    A run's checkpoint that was replaced by training is passed over, since the run may have its own copy.
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
    """Return the recorded hash of a checkpoint or an export; None if there is neither."""
    try:
        if exports.is_export(place):
            return exports.recorded_sha256(place)
        return recorded_sha256(place) if place.is_file() else None
    except (OSError, CheckpointError):
        return None


def places_beside(model: Path, what: str = "refiner") -> list[Path]:
    """Return where the refiner, or ``what`` else, of a run folder, checkpoint file or export folder is looked for."""
    model = located(model).absolute()
    run = model if model.is_dir() else model.parent
    if run.name == "checkpoints":
        run = run.parent
    return [run.with_name(f"{run.name}_{what}"), run / what]
