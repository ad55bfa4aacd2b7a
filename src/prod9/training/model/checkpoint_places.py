"""Where checkpoints are: the best ones of a run, and the earlier stages that a file was trained on."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prod9.files import atomic_write

INDEX = "best.json"


def describe_input(path: Path, sha256: str, base: Path) -> dict[str, str]:
    """Return the record of an earlier stage: where it is, where it is seen from ``base``, and its hash."""
    path, base = path.resolve(), base.resolve()
    return {"path": str(path), "relative": Path(os.path.relpath(path, base)).as_posix(), "sha256": sha256}


def write_index(folder: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Record which best checkpoints ``folder`` holds, best first: ``{"file", "step", "value"}`` each."""
    with atomic_write(folder / INDEX) as temporary:
        Path(temporary).write_text(json.dumps(list(entries), indent=2) + "\n", encoding="utf-8")


def ranked_best(folder: Path) -> list[str]:
    """Return the names of the best checkpoints of ``folder``, best first; those there are where no index tells."""
    try:
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        # A name from a file never leads out of the folder.
        return [Path(str(entry["file"])).name for entry in entries]
    except (OSError, ValueError, TypeError, KeyError):
        return sorted((file.name for file in folder.glob("best-step=*.ckpt")), reverse=True)


def recorded_places(path: Path, recorded: dict[str, str]) -> list[Path]:
    """Return where an earlier stage of the checkpoint ``path`` may be: where it was, or as far from it as then."""
    run = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    places = [Path(recorded["path"]), run / recorded["relative"]]
    return [place for place in places if place.is_absolute()] or places[1:]
