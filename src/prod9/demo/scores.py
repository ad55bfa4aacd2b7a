"""What a demo run is worth, measured on patients that no stage trained on or selected by."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.data.splits import Part
from prod9.demo.sets import Autoencoder, VolumeSet, reconstruct
from prod9.evaluation.classifier import ModalityClassifier, train_classifier
from prod9.evaluation.distribution import diversity_ratio, frechet_ratio
from prod9.evaluation.features import AutoencoderFeatures, extract
from prod9.evaluation.lesions import LesionDetector, train_lesion_detector
from prod9.evaluation.paired import paired_scores
from prod9.evaluation.pca_codec import fit_pca_codec

Say = Callable[[str], None]
Metrics = dict[str, Any]

LESIONS_SHOW_IN = "FLAIR"
"""Where lesions are plain; the lesion detector reads no other modality."""

_MAX_RECONSTRUCTIONS = 160
"""Training volumes that the judges see as reconstructions too: enough to learn what those look like."""


def score_stage1(autoencoder: Autoencoder, training: VolumeSet, held_out: VolumeSet) -> Metrics:
    """Return reconstruction scores on ``held_out`` beside the PCA codec of equal rate.

    Equal rate is as many values a block: quantised to the same levels for tokens, floats for a KL latent.
    """
    codec = fit_pca_codec(
        training.volumes,
        block=autoencoder.downsampling_factor,
        num_coefficients=autoencoder.latent_channels,
        levels=autoencoder.levels if isinstance(autoencoder, AutoencoderFSQ) else None,
    )
    scores = paired_scores(reconstruct(autoencoder, held_out.volumes), held_out.volumes)
    return {
        "psnr_brain": scores["psnr_brain"],
        "psnr_brain_pca": codec.psnr_brain(held_out.volumes),
        "ssim_brain": scores["ssim_brain"],
        "volumes": len(held_out.volumes),
    }


@dataclass(frozen=True, eq=False)
class Judges:
    """What scores generated volumes: trained and calibrated on training and validation patients alone.

    Each is trained when it is first asked. sets: ``train``, ``val`` and ``test``; ``val`` calibrates the detector.
    label_map: that of the sets. steps: of the classifier; the detector takes half as many.
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
        """Names the modality of real training volumes and of reconstructions."""
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
        """Tells brains with a lesion from those without."""
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

        The judges' own accuracy on held-out reconstructions stands beside what they say of the generated.
        """
        train, test = self.reconstructions["train"], self.reconstructions["test"]
        frechet = frechet_ratio(
            extract(self.extractor, generated),
            extract(self.extractor, train.volumes),
            extract(self.extractor, test.volumes),
            generator=torch.Generator().manual_seed(self.seed),
            generated_labels=labels,
            training_labels=train.labels,
        )
        real = self.sets["test"]
        return {
            "modality_accuracy": self.classifier.accuracy(generated, labels),
            "classifier_accuracy_reconstructions": self.classifier.accuracy(test.volumes, test.labels),
            "diversity_ratio": _diversity(generated, labels, real),
            "diversity_ratio_reconstructions": _diversity(test.volumes, test.labels, real),
            "frechet_ratio": frechet.ratio,
            "frechet_distance": frechet.distance,
            "frechet_floor": frechet.floor,
            "frechet_extractor": self.extractor.name,
            "lesion_share": self.detector.share(generated, labels),
            "lesion_share_cohort": sum(s.lesion_share * len(s.labels) for s in self.sets.values())
            / sum(len(s.labels) for s in self.sets.values()),
            "lesion_detector_accuracy_reconstructions": self.detector.accuracy(test.cases()),
            "volumes": len(generated),
            "held_out_volumes": len(real.volumes),
        }


def _diversity(volumes: Tensor, labels: Tensor, held_out: VolumeSet) -> float:
    return diversity_ratio(
        volumes, held_out.volumes, generated_labels=labels, held_out_labels=held_out.labels
    )
