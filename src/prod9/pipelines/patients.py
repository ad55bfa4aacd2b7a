"""Whole patients: one modality from its label, the others from it, all of the same head.

The first modality comes from a label-conditional model. Each further one is made in context from all that are
there by then, which is ancestral sampling of the joint distribution. With a segmentation, control networks of
either model keep the lesion where it says, and the patient comes with a truth to learn from.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from prod9.errors import ConfigError
from prod9.generator.condition import MaskGiTCondition
from prod9.models.checkpoint_manager import CheckpointManager, Opened
from prod9.pipelines.control import ControlPipeline
from prod9.pipelines.maskgit import MaskGiTPipeline, derived_seed
from prod9.pipelines.placement import HEAD_THRESHOLD
from prod9.pipelines.segmentation import PlacedSegmentation
from prod9.pipelines.translation import TranslationPipeline

_SHOWS_MOST = "T2"
"""Shows fluid, both matters and the whole of a lesion: what the other modalities follow best."""

_DARKEST = np.float32(1 / 65535)
"""Least intensity inside of a head: readers of a finished volume take 0 as outside, and it survives 16 bits."""

Report = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class GeneratedPatient:
    """One patient.

    images: modality → float32 ``[H W D]`` in [0, 1], RAS, exactly 0 outside of the head and nowhere else. head: bool
    ``[H W D]``, True inside. seg: uint8, canonical labels of the segmentation that steered it, or None. affine: 4×4,
    voxel to mm. index: its number; seed: that of this very patient (the run's plus the index).
    """

    images: dict[str, np.ndarray]
    head: np.ndarray
    seg: np.ndarray | None
    affine: np.ndarray
    index: int
    seed: int


class PatientPipeline:
    """Makes patients with a label-conditional model and a translator, which live on one grid.

    first, translator: the two models. first_control, translator_control: control networks of either, or None.
    start_with: the modality that is made from its label; None for T2 or, where the model knows none, its first label.
    """

    def __init__(
        self,
        *,
        first: MaskGiTPipeline,
        translator: TranslationPipeline,
        first_control: ControlPipeline | None = None,
        translator_control: ControlPipeline | None = None,
        start_with: str | None = None,
    ) -> None:
        names, known = first.label_names(), translator.generator.label_names()
        if first.kind != "label_conditional":
            raise ConfigError(
                f"expected a model of kind 'label_conditional' to make the first modality, got {first.kind!r}; "
                "name a run of the stage2_label configs."
            )
        if set(names) != set(known) or first.grid != translator.generator.grid:
            raise ConfigError(
                f"expected two models of one grid and the same modalities, got {first.grid} with "
                f"{', '.join(names)} and {translator.generator.grid} with {', '.join(known)}; train them on the "
                "same data."
            )
        if start_with is not None and start_with not in names:
            raise ConfigError(f"expected a first modality among {', '.join(names)}, got {start_with!r}.")
        self.first = first
        self.translator = translator
        self.first_control = first_control
        self.translator_control = translator_control
        self.start_with = start_with or (_SHOWS_MOST if _SHOWS_MOST in names else names[0])
        self.order = [self.start_with, *(name for name in names if name != self.start_with)]
        # Refused now rather than after the first volume of the first patient.
        translator.check([self.start_with], self.order[1])

    @classmethod
    def from_checkpoints(
        cls,
        model: str | Path,
        in_context: str | Path,
        *,
        controls: Sequence[str | Path] = (),
        device: str | torch.device = "cpu",
        autoencoder: str | Path | None = None,
        control_strength: float | None = None,
        start_with: str | None = None,
        refine: bool = True,
    ) -> "PatientPipeline":
        """Build from run folders, checkpoints or exports, each sampling as its own config says.

        controls: stage-3 runs on either model; which is told by the hash of the transformer in them.
        autoencoder: where stage 1 is now, if it has moved. control_strength: instead of the recorded ones.
        refine: let the translator's refiner, where there is one, improve what it makes. Raises CheckpointError
        and ConfigError.
        """
        first = MaskGiTPipeline.from_checkpoint(model, device=device, autoencoder=autoencoder)
        opened = CheckpointManager.open(in_context, stage="transformer")
        same = opened.header["inputs"].get("autoencoder", {}).get("sha256") == first.sha256["autoencoder"]
        translator = TranslationPipeline.from_checkpoint(
            opened, device=device, autoencoder=first.upstream if same else autoencoder, refine=refine
        )
        bases = {
            first.sha256["transformer"]: ("first_control", first, model),
            translator.generator.sha256["transformer"]: (
                "translator_control",
                translator.generator,
                in_context,
            ),
        }
        changes = [] if control_strength is None else [("control.control_strength", control_strength)]
        steering: dict[str, Any] = {}
        for path in controls:
            control = CheckpointManager.open(path, stage="maskgit_controlnet")
            place, base = _base_of(control, bases)
            if place in steering:
                raise ConfigError(f"{path}: expected one control network for each model, got a second one.")
            steering[place] = ControlPipeline.from_checkpoint(
                control, device=device, transformer=base, overrides=changes
            )
        return cls(first=first, translator=translator, start_with=start_with, **steering)

    @property
    def sha256(self) -> dict[str, str]:
        """Of all files behind it, by name, for the record."""
        hashes = {f"label {name}": value for name, value in self.first.sha256.items()}
        hashes |= {f"in-context {name}": value for name, value in self.translator.sha256.items()}
        for name, control in (("label", self.first_control), ("in-context", self.translator_control)):
            if control is not None:
                hashes[f"{name} controlnet"] = control.generator.sha256["controlnet"]
        return hashes

    def check(self, has_seg: bool) -> None:
        """Refuse with a ConfigError a segmentation that nothing follows, and control that has none."""
        controls = [c for c in (self.first_control, self.translator_control) if c is not None]
        steered = [c for c in controls if c.needs_seg]
        if has_seg and not steered:
            raise ConfigError(
                "expected a control network to follow the segmentations, got none; add --control RUN, or leave "
                "out --seg."
            )
        if steered and not has_seg:
            raise ConfigError("expected segmentations for the control network, got none; add --seg DIR.")

    def generate(
        self,
        indices: Sequence[int],
        *,
        seed: int = 0,
        segs: Sequence[PlacedSegmentation] = (),
        report: Report | None = None,
    ) -> Iterator[GeneratedPatient]:
        """Yield the patients of ``indices``; patient k depends on ``seed + k`` and its segmentation alone.

        segs: on the grid; patient k has segmentation k, from the first again when there are fewer. report: called
        with the patients done, fractions of one included.
        """
        self.check(bool(segs))
        for done, index in enumerate(indices):
            seg = segs[index % len(segs)] if segs else None

            def share(part: float, done: int = done) -> None:
                if report is not None:
                    report(done + part)

            images, head = self._images(seed + index, seg, share)
            affine = self.first.affine if seg is None else seg.affine
            labels = None if seg is None else seg.seg
            yield GeneratedPatient(images, head, labels, affine.copy(), index, seed + index)

    def _images(
        self, seed: int, seg: PlacedSegmentation | None, report: Report
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the images and, bool ``[H W D]``, the head that they share."""
        count = len(self.order)
        volume = self._first(seed, seg, lambda part: report(part / count))
        head = head_of(volume)
        images = {self.start_with: _stripped(volume, head)}
        for done, name in enumerate(self.order[1:], start=1):
            volume = self._next(
                images, head, name, seed, seg, lambda part, done=done: report((done + part) / count)
            )
            # What is not head in one modality is not head in any, as in a skull-stripped scan.
            images[name] = _stripped(volume, head)
        return images, head

    def _first(self, seed: int, seg: PlacedSegmentation | None, report: Report) -> np.ndarray:
        label = self.first.label_map[self.start_with]
        condition = MaskGiTCondition(torch.tensor([label]))
        sample = _steered(self.first_control, seg, label) or self.first.sample_tokens
        tokens = sample(condition, seeds=[derived_seed(seed, label)], report=report)
        return self.first.decode_tokens(tokens)

    def _next(
        self,
        images: dict[str, np.ndarray],
        head: np.ndarray,
        name: str,
        seed: int,
        seg: PlacedSegmentation | None,
        report: Report,
    ) -> np.ndarray:
        label = self.translator.generator.label_map[name]
        sources = dict(list(images.items())[: self.translator.max_sources])
        made = self.translator.translate(
            sources,
            name,
            head=head,
            seed=derived_seed(seed, label),
            sample=_steered(self.translator_control, seg, label),
            progress=report,
        )
        return made.mean


def head_of(volume: np.ndarray) -> np.ndarray:
    """Return bool, True in the head of a decoded, skull-stripped volume: its largest part, holes closed.

    Decoding leaves the background near 0, not at 0, where readers and training look for it.
    """
    parts, count = ndimage.label(volume > HEAD_THRESHOLD)  # pyright: ignore[reportGeneralTypeIssues]
    if count == 0:
        return np.ones(volume.shape, dtype=bool)
    sizes = np.bincount(parts.ravel())[1:]
    return ndimage.binary_fill_holes(parts == 1 + int(sizes.argmax()))  # pyright: ignore[reportReturnType]


def _stripped(volume: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Return ``volume`` with exactly 0 outside of ``head`` and more than 0 inside."""
    return np.where(head, np.maximum(volume, _DARKEST), np.float32(0.0))


def _steered(
    control: ControlPipeline | None, seg: PlacedSegmentation | None, label: int
) -> Callable[..., torch.Tensor] | None:
    """Return what draws tokens under ``control``; None without."""
    if control is None:
        return None

    def sample(condition: Any, *, seeds: Sequence[int], **arguments: Any) -> torch.Tensor:
        segs = None if seg is None or not control.needs_seg else np.repeat(seg.seg[None], len(seeds), axis=0)
        return control.sample_tokens(
            condition, segs=segs, labels=[label] * len(seeds), seeds=seeds, **arguments
        )

    return sample


def _base_of(
    control: Opened, bases: dict[str, tuple[str, MaskGiTPipeline, str | Path]]
) -> tuple[str, MaskGiTPipeline]:
    """Return whose control network ``control`` is."""
    recorded = control.header["inputs"]["transformer"]["sha256"]
    if recorded not in bases:
        places = " or ".join(str(path) for *_, path in bases.values())
        raise ConfigError(
            f"{control.path}: expected a control network trained on {places}, got that of another transformer "
            f"(SHA-256 {recorded[:12]}…); name the models it belongs to, or train it on these."
        )
    place, pipeline, _ = bases[recorded]
    return place, pipeline
