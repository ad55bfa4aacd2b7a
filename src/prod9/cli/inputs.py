"""The data that a config names, of either dataset family: found and counted without reading a voxel."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prod9.config.schema import DataConfig, MedMNIST3DDataConfig
    from prod9.data.cases import Case


@dataclass(frozen=True)
class Inputs:
    """The data that were found.

    Attributes:
        num_cases: number of cases.
        num_volumes: number of volumes.
        cases: the files of each case; empty for MedMNIST3D.
        parts: number of samples per part; None where the config divides the cases itself.
        files: number of files by format.
    """

    num_cases: int
    num_volumes: int
    cases: "Sequence[Case]" = ()
    parts: dict[str, int] | None = None
    files: dict[str, int] = field(default_factory=dict)


def find_inputs(data: "DataConfig | MedMNIST3DDataConfig") -> Inputs:
    """Return what ``data`` names; DataError when it is missing or incomplete."""
    if data.kind == "medmnist3d":
        return _medmnist3d(data)
    from prod9.data.layouts.find import find_cases

    cases = find_cases(Path(data.root), **data.reading)
    return Inputs(len(cases), len(cases) * len(data.modalities), cases)


def _medmnist3d(data: "MedMNIST3DDataConfig") -> Inputs:
    from prod9.data.layouts.medmnist import address_of, file_name, open_medmnist3d

    path = Path(data.root) / file_name(data.name, data.size)
    if data.download and not path.is_file():
        address_of(path.stem)  # a download that cannot begin is refused before it is due
        return Inputs(0, 0, parts={}, files={f"{path} (to be fetched)": 1})
    counts = open_medmnist3d(Path(data.root), data.name, data.size).counts
    total = sum(counts.values())
    sides = "×".join([str(data.size)] * 3)
    return Inputs(
        total,
        total,
        parts={str(part): count for part, count in counts.items()},
        files={f"{sides} in {path.name}": total},
    )
