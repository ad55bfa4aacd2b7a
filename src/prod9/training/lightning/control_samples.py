"""What stage 3 of either family samples at a validation, and what those samples are worth."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from prod9.training.lightning.base import Batch, Panel, Unregistered
from prod9.training.lightning.upstream import AbstractUpstreamLightning

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


class SampledControl(AbstractUpstreamLightning[Any]):
    """A control network on a frozen base, and a validation that samples with it and without.

    To be named before the class that says what is sampled: ``class Final(SampledControl, …)``, which sets
    ``controlnet``, ``_algorithm`` and ``_samples``.
    """

    config: MaskGiTControlNetLightningConfig | MaisiControlNetConfig
    controlnet: Any  # a network; the final class says which
    _algorithm: Unregistered[ControlNetTrainer]
    _samples: list[Sampled]
    _classifier: Unregistered[ModalityClassifier] | None = None

    @property
    @abstractmethod
    def base(self) -> nn.Module:
        """The frozen network that is steered."""

    @property
    def algorithm(self) -> ControlNetTrainer:
        """The losses and metrics."""
        return self._algorithm.content

    def networks(self) -> dict[str, nn.Module]:
        """Return the control network."""
        return {"controlnet": self.controlnet}

    def on_fit_start(self) -> None:
        """Bring autoencoder and base to the device; Lightning does not know them."""
        super().on_fit_start()
        self.base.to(self.device).eval()

    @abstractmethod
    def draw(self, one: Batch, batch_idx: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return volumes ``[H W D]`` in [0, 1] of one sample: decoded, sampled with control, and without.

        The two samples take the same random numbers.
        """

    @abstractmethod
    def decode_item(self, item: Batch) -> np.ndarray:
        """Return the volume ``[H W D]`` that an item of the data set (without a batch axis) decodes to."""

    def sample_for(self, batch: Batch, batch_idx: int) -> None:
        """Sample for the first of a batch, for the first held-out lesions: here, where averaged weights are."""
        wanted = self.config.validation.num_volumes
        if len(self._samples) < wanted and self._is_worth_sampling(batch):
            self._samples.append(self._sample(batch, batch_idx))

    def on_validation_epoch_start(self) -> None:
        """Forget the samples of the last validation."""
        super().on_validation_epoch_start()
        self._samples = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log what the samples are worth: ``val/fid``, ``val/region_contrast`` and more.

        ``fid``: Fréchet distance to the real volumes of the same segmentations in ``fid_dimensions`` principal
        directions of the autoencoder's features, from ``fid_patients`` patients; ``fid_reliable`` is 0 where those
        are fewer than twice the directions. ``kid``: unbiased kernel distance of all features, each patient counting
        once, where there are two or more. ``region_contrast``: 1 where classes stand out from the brain as in those
        volumes, 0 without trace. Where foregrounds steer: ``foreground_dice`` with them, ``…_real`` of
        reconstructions being the most that can be reached. ``…_base``: the same of samples without control. With a
        classifier its ``classifier_accuracy`` and the ``inception_score``. Every rank has the same samples.
        """
        super().on_validation_epoch_end()
        self._log_samples("val")

    def on_test_epoch_end(self) -> None:
        """Log the same of the test patients, as ``test/fid`` …"""
        super().on_test_epoch_end()
        self._log_samples("test")

    def sample_validation(self, num_samples: int) -> list[list[Panel]]:
        """Return segmentation, real volume, and samples with and without control, centred on the lesion."""
        classes = self.config.condition.num_mask_classes
        return [
            [
                Panel(f"{s.title}: segmentation", centred(s.seg[0].float() / (classes - 1), s.seg[0])),
                Panel("real", centred(s.real[0, 0], s.seg[0])),
                Panel("with control", centred(s.controlled[0, 0], s.seg[0])),
                Panel("without", centred(s.base[0, 0], s.seg[0])),
            ]
            for s in self._samples[:num_samples]
        ]

    def _is_worth_sampling(self, batch: Batch) -> bool:
        # One sync a held-out batch, until enough are sampled.
        return not self.config.condition.takes_seg or bool((batch["seg"][:1] > 0).any())

    @torch.no_grad()
    def _sample(self, batch: Batch, batch_idx: int) -> Sampled:
        one = {name: value[:1] for name, value in batch.items()}
        volumes = [torch.from_numpy(volume)[None, None] for volume in self.draw(one, batch_idx)]
        patient = identify(str(one["case_id"][0])).patient_id
        return Sampled(one["modality"][0], patient, one["seg"].cpu(), *volumes)

    def _log_samples(self, part: str) -> None:
        if len(self._samples) < 2:
            return
        seg, real, controlled, base = (
            torch.cat([getattr(sampled, name) for sampled in self._samples])
            for name in ("seg", "real", "controlled", "base")
        )
        (members,) = number_members([(sampled.patient, sampled.title) for sampled in self._samples])
        features = AutoencoderFeatures(self.wrapper.autoencoder)
        wanted = extract(features, real.to(self.device), batch_size=1)
        directions = num_directions(members.num_patients, wanted.shape[1])
        classify = self._trained_classifier(part, real)
        metrics: dict[str, Any] = {
            f"{part}/fid_dimensions": float(directions),
            f"{part}/fid_patients": float(members.num_patients),
            f"{part}/fid_reliable": float(members.num_patients >= 2 * directions),
        }
        for suffix, volumes in (("", controlled), ("_base", base)):
            made = extract(features, volumes.to(self.device), batch_size=1)
            # Features of each set are taken once: both distances look them up.
            known = {id(volumes): made, id(real): wanted}
            scores = ControlNetTrainer.compute_sample_metrics(
                volumes,
                real,
                extractor=lambda x, known=known: known[id(x)],
                classify=classify,
                directions=directions,
            )
            scores["kid"] = torch.tensor(standardised_kid(made, wanted, members=(members, members)))
            scores["region_contrast"] = torch.tensor(contrast_slope(volumes, real, seg))
            metrics |= {f"{part}/{k}{suffix}": v.float() for k, v in scores.items() if v.isfinite()}
        if self.config.data.kind == "medmnist3d" and self.config.condition.takes_seg:
            for suffix, volumes in (("", controlled), ("_base", base), ("_real", real)):
                metrics[f"{part}/foreground_dice{suffix}"] = foreground_dice(volumes, seg)
        self.log_dict(metrics)

    def _trained_classifier(self, part: str, real: Tensor) -> Any:
        """Return volumes → class probabilities, and log how far it can be trusted; None if not asked for."""
        steps = self.config.validation.classifier_steps
        if not steps:
            return None
        if self._classifier is None:
            self._classifier = Unregistered(self._train_classifier(steps))
        names = self.config.data.label_map
        labels = torch.tensor([self._place(names[sampled.title]) for sampled in self._samples])
        classifier = self._classifier.content
        self.log(f"{part}/classifier_accuracy", classifier.accuracy(coarsen(real), labels))
        return lambda generated: classifier.probabilities(coarsen(generated))

    def _train_classifier(self, steps: int) -> ModalityClassifier:
        """Train a judge of modalities on what the training latents decode to."""
        samples: Any = self.trainer.datamodule.build_dataset("train")  # pyright: ignore[reportAttributeAccessIssue]
        chosen = np.linspace(0, len(samples) - 1, min(_CLASSIFIER_VOLUMES, len(samples))).astype(int)
        items = [samples[int(index)] for index in chosen]
        volumes = [self.decode_item(item) for item in items]
        # A validation runs without gradients, and what it makes cannot take part in any.
        with torch.inference_mode(False), torch.enable_grad():
            return train_classifier(
                torch.cat([coarsen(torch.from_numpy(volume)[None, None]) for volume in volumes]),
                torch.tensor([self._place(int(item["label"])) for item in items]),
                num_classes=len(self.config.data.label_map),
                seed=self.config.seed,
                steps=steps,
            )

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
