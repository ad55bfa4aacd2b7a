"""The scores of a demo run, on patients that no stage was trained on or selected by."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.data.splits import Part
from prod9.demo.sets import Autoencoder, VolumeSet, reconstruct
from prod9.evaluation.judges.classifier import ModalityClassifier, train_classifier
from prod9.evaluation.judges.features import AutoencoderFeatures, extract
from prod9.evaluation.judges.lesions import LesionDetector, train_lesion_detector
from prod9.evaluation.paired import psnr_brain, ssim_brain
from prod9.evaluation.pca_codec import fit_pca_codec
from prod9.evaluation.sets.distribution import (
    FrechetRatio,
    compare_diversity,
    compare_kernels,
    diversity_ratio,
    fewest_patients,
    frechet_ratio,
    sample,
)
from prod9.evaluation.sets.intervals import mean_interval
from prod9.json_files import without_nan
from prod9.measures.metrics import PSNR_CAP

Say = Callable[[str], None]
Metrics = dict[str, Any]

LESIONS_SHOW_IN = "FLAIR"
"""Where lesions are seen best; the lesion detector reads no other modality."""

REPLICATES = 200
"""Bootstrap samples behind each interval."""
_MAX_RECONSTRUCTIONS = 160
"""Training volumes that the judges see as reconstructions too: enough to learn what those look like."""


def score_stage1(autoencoder: Autoencoder, training: VolumeSet, held_out: VolumeSet) -> Metrics:
    """Return reconstruction scores on ``held_out`` beside those of a PCA codec of equal rate.

    Equal rate means as many values per block: quantised to the same levels for tokens, floats for a KL latent.
    """
    codec = fit_pca_codec(
        training.volumes,
        block=autoencoder.downsampling_factor,
        num_coefficients=autoencoder.latent_channels,
        levels=autoencoder.levels if isinstance(autoencoder, AutoencoderFSQ) else None,
    )
    made, wanted = reconstruct(autoencoder, held_out.volumes), held_out.volumes
    values = {
        "psnr_brain": psnr_brain(made, wanted),
        "psnr_brain_pca": psnr_brain(codec.reconstruct(wanted), wanted),
        "ssim_brain": ssim_brain(made, wanted),
    }
    return {
        **{name: found.nanmean().item() for name, found in values.items()},
        "volumes": len(wanted),
        "patients": len(held_out.patients.unique()),
        "intervals": {
            name: interval_of(found, held_out.patients, most=1.0 if name == "ssim_brain" else PSNR_CAP)
            for name, found in values.items()
        },
    }


def interval_of(
    values: Tensor, patients: Tensor | None = None, *, most: float = math.inf
) -> list[float] | None:
    """Return the 95% interval of the mean over patients of values from 0 to ``most``; None for one patient."""
    found = mean_interval(
        values.float(), replicates=REPLICATES, seed=0, patients=patients, bounds=(0.0, most)
    )
    return None if found is None else list(found)


@dataclass(frozen=True, eq=False)
class Judges:
    """The networks that score generated volumes: trained and calibrated on training and validation patients alone.

    Each is trained when it is first used.

    Attributes:
        autoencoder: stage 1.
        sets: ``train``, ``val`` and ``test``; ``val`` calibrates the detector.
        label_map: that of the sets.
        seed: of their training.
        steps: of the classifier; the detector takes half as many.
        say: prints a line.
    """

    autoencoder: Autoencoder
    sets: dict[Part, VolumeSet]
    label_map: dict[str, int]
    seed: int
    steps: int
    say: Say

    @cached_property
    def reconstructions(self) -> dict[Part, VolumeSet]:
        """``train``, ``val`` and ``test`` after a pass through stage 1."""
        self.say("Reconstructing the cohort for the judges")
        return {part: self._reconstructed(own.first(_MAX_RECONSTRUCTIONS)) for part, own in self.sets.items()}

    @cached_property
    def classifier(self) -> ModalityClassifier:
        """Classifies modalities; trained on real training volumes and on reconstructions."""
        mixed = self._mixed
        self.say("Training the modality classifier")
        return train_classifier(
            mixed.volumes,
            mixed.labels,
            num_classes=int(mixed.labels.max()) + 1,
            seed=self.seed,
            steps=self.steps,
        )

    @cached_property
    def detector(self) -> LesionDetector:
        """Detects whether a brain has a lesion."""
        mixed = self._mixed
        self.say("Training the lesion detector")
        return train_lesion_detector(
            mixed.cases(),
            self.reconstructions["val"].cases(),
            modality=self.label_map[LESIONS_SHOW_IN],
            seed=self.seed,
            steps=self.steps // 2,
        )

    @property
    def extractor(self) -> AutoencoderFeatures:
        """Features of the Fréchet distance."""
        return AutoencoderFeatures(self.autoencoder)

    @property
    def _mixed(self) -> VolumeSet:
        return self.sets["train"].joined(self.reconstructions["train"])

    def _reconstructed(self, own: VolumeSet) -> VolumeSet:
        return own.replaced(reconstruct(self.autoencoder, own.volumes))

    def score(self, generated: Tensor, labels: Tensor) -> Metrics:
        """Return the scores of ``generated`` ``[N 1 H W D]`` of the classes ``labels [N]``.

        The judges' accuracy on held-out reconstructions is given beside their results on generated volumes. Distances
        are those to reconstructions, which separate the generator from the autoencoder, and under ``against_scans``
        those to the scans themselves, each with N, D, floor and interval.
        """
        again, test = self.reconstructions["train"], self.reconstructions["test"]
        real = self.sets["test"]
        frechet = self._frechet(generated, labels, again, test)
        named = (self.classifier.predict(generated) == labels).double()
        lesions = self.detector.has_lesion(generated[labels == self.detector.modality]).double()
        return {
            "modality_accuracy": named.mean().item(),
            "classifier_accuracy_reconstructions": self.classifier.accuracy(test.volumes, test.labels),
            "diversity_ratio": _diversity(generated, labels, real),
            "diversity_ratio_reconstructions": _diversity(test.volumes, test.labels, real),
            "frechet_ratio": without_nan(frechet.ratio),
            "frechet_distance": frechet.distance,
            "frechet_floor": frechet.floor,
            "frechet_extractor": self.extractor.name,
            "frechet": _about_frechet(frechet),
            "lesion_share": without_nan(lesions.mean().item()),
            "lesion_share_cohort": sum(s.lesion_share * len(s.labels) for s in self.sets.values())
            / sum(len(s.labels) for s in self.sets.values()),
            "lesion_detector_accuracy_reconstructions": self.detector.accuracy(test.cases()),
            "volumes": len(generated),
            "held_out_volumes": len(real.volumes),
            "held_out_patients": len(real.patients.unique()),
            "intervals": {
                "modality_accuracy": interval_of(named, most=1.0),
                "lesion_share": interval_of(lesions, most=1.0),
            },
            "against_scans": self._against_scans(generated, labels),
        }

    def _against_scans(self, generated: Tensor, labels: Tensor) -> Metrics:
        """Return the distances to held-out scans, and the diversity beside theirs."""
        train, real = self.sets["train"].first(_MAX_RECONSTRUCTIONS), self.sets["test"]
        made, *sides = (
            sample(extract(self.extractor, volumes), own, patients)
            for volumes, own, patients in (
                (generated, labels, None),
                (train.volumes, train.labels, train.patients),
                (real.volumes, real.labels, real.patients),
            )
        )
        kernel = compare_kernels(made, *sides, generator=self._generator(), replicates=REPLICATES)
        ours, floor = (
            compare_diversity(
                volumes, real.volumes, labels=own, held_out_labels=real.labels, patients=patients,
                held_out_patients=real.patients, replicates=REPLICATES, seed=self.seed,
            )
            for volumes, own, patients in (
                (generated, labels, None), (train.volumes, train.labels, train.patients)
            )
        )  # fmt: skip
        patients = fewest_patients(made, sides[1], within=True)
        return {
            "frechet": _about_frechet(self._frechet(generated, labels, train, real)),
            "kid": {
                "value": without_nan(kernel.distance),
                **_ends(kernel.interval),
                "floor": without_nan(kernel.floor),
                "patients": patients,
                "dimensions": kernel.features,
            },
            "diversity": {
                "value": without_nan(ours.ratio),
                **_ends(ours.interval),
                "floor": without_nan(floor.ratio),
                "patients": patients,
            },
        }

    def _frechet(self, generated: Tensor, labels: Tensor, train: VolumeSet, real: VolumeSet) -> FrechetRatio:
        """Compare within modalities, in as many directions as the number of patients allows."""
        return frechet_ratio(
            extract(self.extractor, generated),
            extract(self.extractor, train.volumes),
            extract(self.extractor, real.volumes),
            generator=self._generator(),
            generated_labels=labels,
            training_labels=train.labels,
            held_out_labels=real.labels,
            training_patients=train.patients,
            held_out_patients=real.patients,
            replicates=REPLICATES,
        )

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def _about_frechet(found: FrechetRatio) -> Metrics:
    """Return a ratio with its context; its floor is 1, that of training patients to themselves."""
    return {
        "value": without_nan(found.ratio),
        **_ends(found.interval),
        "floor": 1.0,
        "distance": found.distance,
        "distance_floor": found.floor,
        "patients": found.num_patients,
        "dimensions": found.dimensions,
        "features": found.features,
        "reliable": found.reliable,
    }


def _ends(interval: tuple[float, float] | None) -> Metrics:
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def _diversity(volumes: Tensor, labels: Tensor, held_out: VolumeSet) -> float:
    return diversity_ratio(
        volumes, held_out.volumes, generated_labels=labels, held_out_labels=held_out.labels
    )
