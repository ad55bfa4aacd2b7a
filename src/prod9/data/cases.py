"""Case: the files of one scan session, in any folder layout."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # it imports nibabel, and commands need the names of the parts alone
    from prod9.volumes import Channel

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Case:
    """One scan session.

    Attributes:
        case_id: name of the session.
        patient_id: equal for all time points of a patient, so that splits keep them together.
        images: modality (canonical name) to file.
        seg: the segmentation, if there is one.
        layout: the layout that it was found in.
        label_scheme: meaning of the values of ``seg``; see :mod:`prod9.data.labels`.
        time_point: name of the visit, if there are several.
        channels: place of each modality in a 4D file that holds several; empty if each file is one volume.
        part: the part that the dataset assigns it to; None if the split decides.

    Example:
        >>> from pathlib import Path
        >>> from prod9.data.cases import Case
        >>> files = {"T1": Path("P1_t1.nii.gz"), "FLAIR": Path("P1_flair.nii.gz")}
        >>> case = Case("P1_tp1", "P1", files, Path("P1_seg.nii.gz"), layout="datalist", label_scheme="brats2021")
        >>> [file.name for file in case.files]
        ['P1_t1.nii.gz', 'P1_flair.nii.gz', 'P1_seg.nii.gz']
    """

    case_id: str
    patient_id: str
    images: dict[str, Path]
    seg: Path | None
    layout: str
    label_scheme: str
    time_point: str | None = None
    channels: "Mapping[str, Channel]" = field(default_factory=dict)
    part: Part | None = None

    @property
    def files(self) -> list[Path]:
        """All files of the case, each once, the segmentation last."""
        return list(dict.fromkeys([*self.images.values(), *([self.seg] if self.seg else [])]))
