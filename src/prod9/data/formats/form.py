"""What a folder form is: where the files of a case lie, and which files describe the whole."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prod9.errors import ConfigError

if TYPE_CHECKING:
    from prod9.data.cases import Case


@dataclass(frozen=True)
class Name:
    """The names of one scan session: of the session, of its patient, and of the visit if there are several."""

    case_id: str
    patient_id: str
    time_point: str | None = None

    @classmethod
    def of(cls, case: "Case | str") -> "Name":
        """Return the names of a case, or those that its own name tells."""
        if isinstance(case, str):
            from prod9.data.layouts.names import (
                identify,  # it reads volumes, which help texts need not wait for
            )

            found = identify(case)
            return cls(found.case_id, found.patient_id, found.time_point)
        return cls(case.case_id, case.patient_id, case.time_point)


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a folder holds, for the files that describe it.

    Attributes:
        names: of the cases that train.
        modalities: in the order of their channels.
        labels: name → value of what is segmented; empty without segmentations.
        synthetic: case ids of those that do not exist.
        splits: for each fold, the case ids to train on and to validate on; empty for none.
        about: where the cases come from, for a description.
    """

    names: Sequence[Name]
    modalities: Sequence[str]
    labels: Mapping[str, int] = field(default_factory=dict)
    synthetic: Sequence[str] = ()
    splits: Sequence[Mapping[str, Sequence[str]]] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One folder form. All paths are relative to the folder, with ``/``.

    Attributes:
        name: as ``--format`` takes it.
        modalities: modality → its word in file names; empty if any modality can be written.
        image: path of an image by the names of its case, its modality and whether it is synthetic.
        seg: path of a segmentation.
        describe: the files that describe the whole, by path; values are JSON, or text.
        needs_all: whether every case needs all modalities and a segmentation.
        card: name of the page that says that the patients do not exist.
    """

    name: str
    modalities: Mapping[str, str]
    image: Callable[[Name, str, Sequence[str], bool], str]
    seg: Callable[[Name, bool], str]
    describe: Callable[[Content], Mapping[str, Any]]
    needs_all: bool = False
    card: str = "CARD.md"

    def require(self, modalities: Sequence[str], *, has_seg: bool) -> None:
        """Refuse (ConfigError) modalities that this form has no word for, and a lack of segmentations it needs."""
        unknown = [name for name in modalities if self.modalities and name not in self.modalities]
        if unknown:
            raise ConfigError(
                f"--format: expected only modalities that {self.name} has names for "
                f"({', '.join(self.modalities)}), got {', '.join(unknown)} too; choose nnunet, or leave them out"
            )
        if self.needs_all and not has_seg:
            raise ConfigError(
                f"--format: expected segmentations, which {self.name} trains on, got none; give them, or choose brats"
            )


GLIOMA = {"necrotic core": 1, "oedema": 2, "enhancing tumour": 3}
"""Names of the canonical labels that a segmentation of BraTS 2023 has."""

SYNTHETIC_CARD = """# SYNTHETIC brain scans

The patients in this folder that prod9 made do not exist; their names begin with BraTS-SYN, or a list of synthetic
cases in the folder names them. Their scans reproduce whatever the models learnt, mistakes included, and support no
statement about patients. Their segmentations are what the models were asked for, not what somebody found in the scans.
"""
