"""nnU-Net's raw form: ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``, ``dataset.json``; and its folds.

nnU-Net reads ``splits_final.json`` from its preprocessed folder. Synthetic cases train in every fold and validate in
none: a score on cases that do not exist says nothing about patients.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from prod9.data.formats.form import Content, Form, Name
from prod9.errors import ConfigError

SPLITS = "splits_final.json"


def _image(name: Name, modality: str, order: Sequence[str], synthetic: bool) -> str:
    del synthetic
    return f"imagesTr/{name.case_id}_{list(order).index(modality):04d}.nii.gz"


def _seg(name: Name, synthetic: bool) -> str:
    del synthetic
    return f"labelsTr/{name.case_id}.nii.gz"


def as_test(path: str) -> str:
    """Return where a file lies for a case that nnU-Net does not train on."""
    return path.replace("imagesTr/", "imagesTs/", 1).replace("labelsTr/", "labelsTs/", 1)


def _describe(content: Content) -> Mapping[str, Any]:
    files: dict[str, Any] = {
        "dataset.json": {
            "channel_names": {str(place): name for place, name in enumerate(content.modalities)},
            "labels": {"background": 0, **content.labels},
            "numTraining": len(content.names),
            "file_ending": ".nii.gz",
            "synthetic_cases": list(content.synthetic),
            "prod9": dict(content.about),
        }
    }
    return files | ({SPLITS: [dict(fold) for fold in content.splits]} if content.splits else {})


def make_splits(
    real: Sequence[Name], synthetic: Sequence[Name], *, folds: int, seed: int
) -> list[dict[str, list[str]]]:
    """Return the cases to train and to validate on in each fold, as nnU-Net reads them.

    Real patients are divided evenly; all visits of a patient are in one fold. Every synthetic case trains in all folds.

    Raises ConfigError for fewer real patients than folds.

    Args:
        real: cases of real patients.
        synthetic: cases that do not exist.
        folds: how many.
        seed: of the division.
    """
    patients = sorted({name.patient_id for name in real})
    if len(patients) < folds:
        raise ConfigError(
            f"--folds: expected at least {folds} real patients for {folds} folds, since each validates on some, got "
            f"{len(patients)}; give more patients, or fewer --folds"
        )
    Random(seed).shuffle(patients)
    fold_of = {patient: place % folds for place, patient in enumerate(patients)}
    made = sorted(name.case_id for name in synthetic)
    return [
        {
            "train": sorted(name.case_id for name in real if fold_of[name.patient_id] != fold) + made,
            "val": sorted(name.case_id for name in real if fold_of[name.patient_id] == fold),
        }
        for fold in range(folds)
    ]


NNUNET = Form(name="nnunet", modalities={}, image=_image, seg=_seg, describe=_describe, needs_all=True)
