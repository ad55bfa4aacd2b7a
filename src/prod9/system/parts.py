"""Parts of a work that several processes share: part 2 of 4 does every fourth piece, beginning with the second.

Which pieces a part does depends on nothing but their numbers, so parts need not know of each other.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prod9.errors import ConfigError

_FORM = re.compile(r"(\d+)/(\d+)")
_FOLDER = re.compile(r"part-(\d+)-of-(\d+)")
_SLURM = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class WorkPart:
    """Part ``number`` (from 1) of ``count``; by default all of the work."""

    number: int = 1
    count: int = 1

    @property
    def is_all(self) -> bool:
        """Whether it is all of the work."""
        return self.count == 1

    def owns(self, piece: int) -> bool:
        """Return whether this part does ``piece``, numbered from 0."""
        return piece % self.count == self.number - 1

    def folder(self, directory: Path) -> Path:
        """Return where its results go: ``directory``, or for one of several parts a folder of its own there."""
        return directory if self.is_all else directory / f"part-{self.number}-of-{self.count}"

    def __str__(self) -> str:
        """Return it as ``--part`` takes it."""
        return f"{self.number}/{self.count}"


ALL = WorkPart()


def parse_part(text: str) -> WorkPart:
    """Return the part that ``2/4`` names; ConfigError for anything else."""
    found = _FORM.fullmatch(text.strip())
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(
            f"--part: expected I/N with I from 1 to N, such as 2/4, got {text!r}; number the parts from 1"
        )
    return WorkPart(number, count)


def part_of_slurm(environment: Mapping[str, str] | None = None) -> WorkPart:
    """Return the part that this task of a SLURM array does; all of the work outside of an array.

    The array must have equal steps (``--array=0-7``, ``1-8`` or ``0-14:2``), so that the number of a task tells its
    place. Raises ConfigError for others.
    """
    environment = os.environ if environment is None else environment
    given = {name: environment.get(_SLURM + name, "") for name in ("ID", "COUNT", "MIN", "STEP")}
    if not given["ID"] or not given["COUNT"]:
        return ALL
    given["MIN"], given["STEP"] = given["MIN"] or "0", given["STEP"] or "1"
    if all(value.isdigit() for value in given.values()):
        task, count, first, step = (int(value) for value in given.values())
        place, rest = divmod(task - first, max(step, 1))
        if rest == 0 and 0 <= place < count:
            return WorkPart(place + 1, count)
    shown = ", ".join(f"{_SLURM}{name}={value}" for name, value in given.items())
    raise ConfigError(
        f"--part: expected an array of equal steps, such as --array=0-7, got {shown}; name the part with --part I/N, "
        "or give --part 1/1 to do all of the work in this task"
    )


def part_folders(directory: Path) -> dict[WorkPart, Path]:
    """Return the folders of parts in ``directory``, in the order of their numbers."""
    found = ((_FOLDER.fullmatch(path.name), path) for path in directory.glob("part-*-of-*") if path.is_dir())
    parts = {WorkPart(int(form[1]), int(form[2])): path for form, path in found if form}
    return dict(sorted(parts.items(), key=lambda item: (item[0].count, item[0].number)))
