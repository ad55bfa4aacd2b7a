"""The volumes that a demo run is scored on, by part of the cohort."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import AutoencoderConfig, MaisiVAEConfig
from prod9.data.datasets.brats import CachedAllModalitiesDataset
from prod9.data.splits import Part
from prod9.evaluation.judges.lesions import LesionCases
from prod9.training.data.brats import BraTSDataModule

PARTS: tuple[Part, ...] = ("train", "val", "test")

Autoencoder = AutoencoderFSQ | AutoencoderKlMaisi
"""Stage 1 of either family."""


@dataclass(frozen=True)
class VolumeSet:
    """Volumes with labels and segmentations.

    The volumes of a case follow each other; those of one label have the order of the cases.

    Attributes:
        volumes: ``[N 1 H W D]`` in [0, 1].
        labels: class labels ``[N]``.
        segs: segmentations, uint8 ``[N 1 H W D]``.
        patients: number of each volume's patient ``[N]``, the same for all cases of a patient.
    """

    volumes: Tensor
    labels: Tensor
    segs: Tensor
    patients: Tensor

    @property
    def lesions(self) -> Tensor:
        """Bool ``[N 1 H W D]``: where there is any class of lesion."""
        return self.segs > 0

    def replaced(self, volumes: Tensor) -> "VolumeSet":
        """Return the same cases with other volumes, such as their reconstructions."""
        return VolumeSet(volumes, self.labels, self.segs, self.patients)

    def joined(self, other: "VolumeSet") -> "VolumeSet":
        """Return both sets, one after the other; patients are counted as the same if their numbers are."""
        return VolumeSet(
            torch.cat([self.volumes, other.volumes]),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.segs, other.segs]),
            torch.cat([self.patients, other.patients]),
        )

    def of(self, label: int) -> "VolumeSet":
        """Return the volumes of one class, one row per patient."""
        own = self.labels == label
        return VolumeSet(self.volumes[own], self.labels[own], self.segs[own], self.patients[own])

    def first(self, count: int) -> "VolumeSet":
        """Return the first ``count`` volumes, or all if there are fewer."""
        rows = slice(count)
        return VolumeSet(self.volumes[rows], self.labels[rows], self.segs[rows], self.patients[rows])

    def cases(self) -> LesionCases:
        """Return the input of the lesion detector."""
        return LesionCases(self.volumes, self.labels, self.lesions)

    @property
    def lesion_share(self) -> float:
        """Share of volumes whose patient has a lesion."""
        return self.lesions.flatten(1).any(1).float().mean().item()


def show_best(volumes: VolumeSet) -> int | None:
    """Return the row whose lesion covers most of one axial slice, which pictures show; None without any lesion."""
    areas = volumes.lesions[:, 0].sum((1, 2)).amax(1)
    return int(areas.argmax()) if len(areas) and areas.any() else None


def load_sets(
    config: AutoencoderConfig | MaisiVAEConfig, parts: Sequence[Part] = PARTS
) -> dict[Part, VolumeSet]:
    """Read the volumes of each of ``parts`` of the cohort, preprocessed as in training."""
    data = BraTSDataModule(config)
    return {part: load_volumes(data.build_patients(part), config.data.label_map) for part in parts}


def load_volumes(dataset: CachedAllModalitiesDataset, label_map: dict[str, int]) -> VolumeSet:
    """Read every modality of every patient of ``dataset``; a patient without segmentation has no lesion."""
    volumes, labels, segs, patients = [], [], [], []
    numbers: dict[str, int] = {}
    for i in range(len(dataset)):
        patient = dataset[i]
        for modality, image in patient["images"].items():
            volumes.append(image)
            labels.append(label_map[modality])
            seg = patient.get("seg")
            patients.append(numbers.setdefault(patient["patient_id"], len(numbers)))
            segs.append((torch.zeros_like(image) if seg is None else seg).to(torch.uint8))
    return VolumeSet(torch.stack(volumes), torch.tensor(labels), torch.stack(segs), torch.tensor(patients))


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, volumes: Tensor, *, batch_size: int = 4) -> Tensor:
    """Return the volumes after a pass through the tokens or the mean latent, clipped to [0, 1]."""
    return torch.cat([autoencoder.reconstruct(x).clamp(0.0, 1.0) for x in volumes.split(batch_size)])
