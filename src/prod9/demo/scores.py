"""What a demo run is worth, measured on patients that no stage trained on or selected by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.data.datasets.brats import CachedAllModalitiesDataset
from prod9.evaluation.classifier import train_classifier
from prod9.evaluation.distribution import diversity_ratio, frechet_ratio
from prod9.evaluation.features import AutoencoderFeatures, extract
from prod9.evaluation.lesions import LesionCases, train_lesion_detector
from prod9.evaluation.paired import paired_scores
from prod9.evaluation.pca_codec import fit_pca_codec

Say = Callable[[str], None]
Metrics = dict[str, Any]


@dataclass(frozen=True)
class VolumeSet:
    """Volumes ``[N 1 H W D]`` in [0, 1], their class labels ``[N]`` and lesion masks, bool ``[N 1 H W D]``."""

    volumes: Tensor
    labels: Tensor
    lesions: Tensor

    def replaced(self, volumes: Tensor) -> "VolumeSet":
        """Return the same cases with other volumes, such as their reconstructions."""
        return VolumeSet(volumes, self.labels, self.lesions)

    def joined(self, other: "VolumeSet") -> "VolumeSet":
        """Return both sets, one after the other."""
        return VolumeSet(
            torch.cat([self.volumes, other.volumes]),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.lesions, other.lesions]),
        )

    def cases(self) -> LesionCases:
        """Return what the lesion detector takes."""
        return LesionCases(self.volumes, self.labels, self.lesions)

    @property
    def lesion_share(self) -> float:
        """Share of volumes whose patient has a lesion."""
        return self.lesions.flatten(1).any(1).float().mean().item()


def load_volumes(dataset: CachedAllModalitiesDataset, label_map: dict[str, int]) -> VolumeSet:
    """Read every modality of every patient of ``dataset``; a patient without segmentation has no lesion."""
    volumes, labels, lesions = [], [], []
    for i in range(len(dataset)):
        patient = dataset[i]
        for modality, image in patient["images"].items():
            volumes.append(image)
            labels.append(label_map[modality])
            seg = patient.get("seg")
            lesions.append(torch.zeros_like(image, dtype=torch.bool) if seg is None else seg > 0)
    return VolumeSet(torch.stack(volumes), torch.tensor(labels), torch.stack(lesions))


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderFSQ, volumes: Tensor, *, batch_size: int = 4) -> Tensor:
    """Return the volumes after a pass through the tokens, clipped to [0, 1]."""
    return torch.cat([autoencoder.reconstruct(x).clamp(0.0, 1.0) for x in volumes.split(batch_size)])


def score_stage1(autoencoder: AutoencoderFSQ, training: VolumeSet, held_out: VolumeSet) -> Metrics:
    """Return reconstruction scores on ``held_out`` beside the PCA codec of equal rate."""
    codec = fit_pca_codec(
        training.volumes,
        block=autoencoder.downsampling_factor,
        num_coefficients=len(autoencoder.levels),
        levels=autoencoder.levels,
    )
    scores = paired_scores(reconstruct(autoencoder, held_out.volumes), held_out.volumes)
    return {
        "psnr_brain": scores["psnr_brain"],
        "psnr_brain_pca": codec.psnr_brain(held_out.volumes),
        "ssim_brain": scores["ssim_brain"],
        "volumes": len(held_out.volumes),
    }


def score_stage2(
    autoencoder: AutoencoderFSQ,
    sets: dict[str, VolumeSet],
    generated: Tensor,
    labels: Tensor,
    *,
    seed: int,
    judge_steps: int,
    say: Say,
) -> Metrics:
    """Return scores of ``generated`` ``[N 1 H W D]`` of the classes ``labels``.

    sets: ``train``, ``val`` and ``test``. The judges (classifier, lesion detector) are trained on real training
    volumes and their reconstructions, calibrated on ``val``, and their own accuracy on reconstructions of
    ``test`` is reported beside what they say of the generated ones.
    """
    say("Reconstructing the cohort for the judges")
    recon = {part: s.replaced(reconstruct(autoencoder, s.volumes)) for part, s in sets.items()}
    mixed = sets["train"].joined(recon["train"])
    num_classes = int(sets["train"].labels.max()) + 1

    say("Training the modality classifier")
    classifier = train_classifier(
        mixed.volumes, mixed.labels, num_classes=num_classes, seed=seed, steps=judge_steps
    )
    say("Training the lesion detector")
    detector = train_lesion_detector(
        mixed.cases(), recon["val"].cases(), num_classes=num_classes, seed=seed, steps=judge_steps
    )

    say("Comparing generated with held-out volumes")
    extractor = AutoencoderFeatures(autoencoder)
    frechet = frechet_ratio(
        extract(extractor, generated),
        extract(extractor, recon["train"].volumes),
        extract(extractor, recon["test"].volumes),
        generator=torch.Generator().manual_seed(seed),
        generated_labels=labels,
        training_labels=recon["train"].labels,
    )
    return {
        "modality_accuracy": classifier.accuracy(generated, labels),
        "classifier_accuracy_reconstructions": classifier.accuracy(
            recon["test"].volumes, recon["test"].labels
        ),
        "diversity_ratio": diversity_ratio(
            generated,
            sets["test"].volumes,
            generated_labels=labels,
            held_out_labels=sets["test"].labels,
        ),
        "frechet_ratio": frechet.ratio,
        "frechet_distance": frechet.distance,
        "frechet_floor": frechet.floor,
        "frechet_extractor": extractor.name,
        "lesion_share": detector.share(generated, labels),
        "lesion_share_cohort": sum(s.lesion_share * len(s.labels) for s in sets.values())
        / sum(len(s.labels) for s in sets.values()),
        "lesion_detector_accuracy_reconstructions": detector.accuracy(recon["test"].cases()),
        "volumes": len(generated),
        "held_out_volumes": len(sets["test"].volumes),
    }
