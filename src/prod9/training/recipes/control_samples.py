"""What a validation of stage 3 samples, and what those samples are worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from prod9.config.schema import MaisiControlNetConfig, MaskGiTControlNetLightningConfig
from prod9.data.layouts.names import identify
from prod9.evaluation.control import contrast_slope, foreground_dice
from prod9.evaluation.judges.classifier import ModalityClassifier, train_classifier
from prod9.evaluation.judges.features import AutoencoderFeatures, extract
from prod9.evaluation.judges.networks import coarsen
from prod9.evaluation.sets.manifold import standardised_kid
from prod9.evaluation.sets.members import number_members
from prod9.measures.metrics import num_directions
from prod9.training.algorithms.controlnet_trainer import ControlNetTrainer
from prod9.training.data.module import AbstractDataModule
from prod9.training.recipes.base import Panel
from prod9.training.recipes.frozen import FrozenAutoencoder

_CLASSIFIER_VOLUMES = 64
"""Training volumes that the classifier of the Inception Score is trained on."""


@dataclass(frozen=True)
class Sampled:
    """Volumes ``[1 1 H W D]`` for one held-out segmentation ``[1 H W D]`` of ``patient``, on the CPU."""

    title: str
    patient: str
    seg: Tensor
    real: Tensor
    controlled: Tensor
    base: Tensor


class ControlSamples:
    """The samples of one validation, with control and without, and their scores.

    Every process has the same samples, so scores need no exchange.
    """

    def __init__(
        self,
        config: MaskGiTControlNetLightningConfig | MaisiControlNetConfig,
        autoencoder: FrozenAutoencoder[Any],
    ) -> None:
        self.config = config
        self.autoencoder = autoencoder
        self.samples: list[Sampled] = []
        self.classifier: ModalityClassifier | None = None

    def wants(self, batch: Mapping[str, Any]) -> bool:
        """Return whether to sample for the first of ``batch``: for the first held-out lesions."""
        if len(self.samples) >= self.config.validation.num_volumes:
            return False
        # One sync per held-out batch, until enough are sampled.
        return not self.config.condition.takes_seg or bool((batch["seg"][:1] > 0).any())

    def add(self, one: Mapping[str, Any], volumes: Sequence[np.ndarray]) -> None:
        """Add the ``volumes`` of a batch of one: decoded, sampled with control, and without."""
        patient = identify(str(one["case_id"][0])).patient_id
        tensors = [torch.from_numpy(volume)[None, None] for volume in volumes]
        self.samples.append(Sampled(one["modality"][0], patient, one["seg"].cpu(), *tensors))

    def rows(self, count: int) -> list[list[Panel]]:
        """Return segmentation, real volume, and samples with and without control, centred on the lesion."""
        classes = self.config.condition.num_mask_classes
        return [
            [
                Panel(f"{s.title}: segmentation", centred(s.seg[0].float() / (classes - 1), s.seg[0])),
                Panel("real", centred(s.real[0, 0], s.seg[0])),
                Panel("with control", centred(s.controlled[0, 0], s.seg[0])),
                Panel("without", centred(s.base[0, 0], s.seg[0])),
            ]
            for s in self.samples[:count]
        ]

    def scores(self, device: torch.device) -> dict[str, Tensor]:
        """Return what the samples are worth; nothing for fewer than two.

        ``fid``: Fréchet distance to the real volumes of the same segmentations in ``fid_dimensions`` principal
        directions of the autoencoder's features, from ``fid_patients`` patients; ``fid_reliable`` is 0 where those
        are fewer than twice the directions. ``kid``: unbiased kernel distance of all features, each patient counting
        once, where there are two or more. ``region_contrast``: 1 where classes stand out from the brain as in those
        volumes, 0 where they leave no trace. Where foregrounds steer: ``foreground_dice`` with them, ``…_real`` of
        reconstructions being the most that can be reached. ``…_base``: the same of samples without control. With a
        classifier its ``classifier_accuracy`` and the ``inception_score``.
        """
        if len(self.samples) < 2:
            return {}
        seg, real, controlled, base = (
            torch.cat([getattr(sampled, name) for sampled in self.samples])
            for name in ("seg", "real", "controlled", "base")
        )
        (members,) = number_members([(sampled.patient, sampled.title) for sampled in self.samples])
        features = AutoencoderFeatures(self.autoencoder.wrapper.autoencoder)
        wanted = extract(features, real.to(device), batch_size=1)
        directions = num_directions(members.num_patients, wanted.shape[1])
        metrics = {
            "fid_dimensions": torch.tensor(float(directions)),
            "fid_patients": torch.tensor(float(members.num_patients)),
            "fid_reliable": torch.tensor(float(members.num_patients >= 2 * directions)),
            **self._classifier_scores(real),
        }
        for suffix, volumes in (("", controlled), ("_base", base)):
            made = extract(features, volumes.to(device), batch_size=1)
            # Features of each set are taken once: both distances look them up.
            known = {id(volumes): made, id(real): wanted}
            scores = ControlNetTrainer.compute_sample_metrics(
                volumes,
                real,
                extractor=lambda x, known=known: known[id(x)],
                classify=None if self.classifier is None else self._probabilities,
                directions=directions,
            )
            scores["kid"] = torch.tensor(standardised_kid(made, wanted, members=(members, members)))
            scores["region_contrast"] = torch.tensor(contrast_slope(volumes, real, seg))
            metrics |= {
                f"{name}{suffix}": value.float() for name, value in scores.items() if value.isfinite()
            }
        if self.config.data.kind == "medmnist3d" and self.config.condition.takes_seg:
            for suffix, volumes in (("", controlled), ("_base", base), ("_real", real)):
                metrics[f"foreground_dice{suffix}"] = torch.tensor(foreground_dice(volumes, seg))
        return metrics

    # -- the classifier of the Inception Score -------------------------------------------------------

    def train_classifier(
        self, data: AbstractDataModule, decode_item: Callable[[Mapping[str, Any]], np.ndarray]
    ) -> None:
        """Train a judge of modalities on decoded training samples, once, where the configuration asks for it.

        data: the data module. decode_item: the volume ``[H W D]`` of an item of its data set.
        """
        steps = self.config.validation.classifier_steps
        if not steps or self.classifier is not None:
            return
        samples = cast(Sequence[Mapping[str, Any]], data.build_dataset("train"))
        chosen = np.linspace(0, len(samples) - 1, min(_CLASSIFIER_VOLUMES, len(samples))).astype(int)
        items = [samples[int(index)] for index in chosen]
        volumes = [coarsen(torch.from_numpy(decode_item(item))[None, None]) for item in items]
        with torch.enable_grad():  # a validation alone runs without
            self.classifier = train_classifier(
                torch.cat(volumes),
                torch.tensor([self._place(int(item["label"])) for item in items]),
                num_classes=len(self.config.data.label_map),
                seed=self.config.seed,
                steps=steps,
            )

    def _classifier_scores(self, real: Tensor) -> dict[str, Tensor]:
        """Return how far the classifier can be trusted."""
        if self.classifier is None:
            return {}
        names = self.config.data.label_map
        labels = torch.tensor([self._place(names[sampled.title]) for sampled in self.samples])
        return {"classifier_accuracy": torch.tensor(self.classifier.accuracy(coarsen(real), labels))}

    def _probabilities(self, generated: Tensor) -> Tensor:
        assert self.classifier is not None
        return self.classifier.probabilities(coarsen(generated))

    def _place(self, label: int) -> int:
        """Return the place of a class label among those of the data, which may have gaps."""
        return sorted(self.config.data.label_map.values()).index(label)


def centred(volume: Tensor, seg: Tensor) -> np.ndarray:
    """Return ``volume [H W D]`` moved so that the middle of the lesion is its middle: pictures show that."""
    inside = (seg > 0).nonzero()
    if not len(inside):
        return volume.numpy()
    moved = volume
    for axis, (side, middle) in enumerate(zip(seg.shape, inside.float().mean(0).tolist(), strict=True)):
        shift = side // 2 - round(middle)
        moved = moved.roll(shift, axis)
        edge = slice(None, shift) if shift > 0 else slice(side + shift, None)
        moved.movedim(axis, 0)[edge] = 0.0
    return moved.numpy()
