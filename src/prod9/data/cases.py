"""Case: the files of one scan session, whatever the folder they were found in looks like."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prod9.volumes import Channel

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Case:
    """One scan session. images: modality to file, canonical names. seg: its segmentation, if there is one.

    patient_id: equal for all time points of a patient, so that splits keep them together.
    layout: the naming it was found under. label_scheme: see :mod:`prod9.data.labels`. channels: place of a
    modality in its file where one 4D file holds several; empty where each file is one volume.
    part: where the dataset itself puts it, None where that is left to the split.
    """

    case_id: str
    patient_id: str
    images: dict[str, Path]
    seg: Path | None
    layout: str
    label_scheme: str
    time_point: str | None = None
    channels: Mapping[str, Channel] = field(default_factory=dict)
    part: Part | None = None

    @property
    def files(self) -> list[Path]:
        """All files of the case, each once, the segmentation last."""
        return list(dict.fromkeys([*self.images.values(), *([self.seg] if self.seg else [])]))
