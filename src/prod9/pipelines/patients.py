"""Whole patients: one modality from its label, the others from it, all of the same head.

The first modality comes from a label-conditional model. Each further one is made in context from all that were
made before, which is ancestral sampling of the joint distribution. With a segmentation, control networks of
either model keep the lesion in its place, and the segmentation is the ground truth of the patient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.generator.condition import MaskGiTCondition
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.pipelines.control import ControlPipeline
from prod9.pipelines.detail import BESIDE, DetailChoice, Finisher
from prod9.pipelines.labels import DETAIL_STREAM
from prod9.pipelines.maskgit import MaskGiTPipeline, derived_seed
from prod9.pipelines.noise import ScanNoise
from prod9.pipelines.placement import head_of, stripped
from prod9.pipelines.recorded import Overrides
from prod9.pipelines.segmentation import PlacedSegmentation
from prod9.pipelines.steering import repeated
from prod9.pipelines.translation import TranslationPipeline
from prod9.system.progress import Share, within

_SHOWS_MOST = "T2"
"""It shows fluid, both kinds of matter and the whole of a lesion, so the other modalities follow it best."""


@dataclass(frozen=True, eq=False)
class GeneratedPatient:
    """One patient.

    Attributes:
        images: modality → float32 ``[H W D]`` in [0, 1], RAS, exactly 0 outside of the head and nowhere else.
        head: bool ``[H W D]``, True inside.
        seg: uint8, canonical labels of the segmentation that steered it, or None.
        affine: 4×4, voxel to mm.
        index: number of the patient.
        seed: of this patient: the run's plus the index.
    """

    images: dict[str, np.ndarray]
    head: np.ndarray
    seg: np.ndarray | None
    affine: np.ndarray
    index: int
    seed: int


class PatientPipeline:
    """Makes patients with a label-conditional model and a translator of the same grid.

    Args:
        first: makes the first modality from its label.
        translator: makes each other modality.
        first_control: control network of ``first``, or None.
        translator_control: control network of ``translator``, or None.
        start_with: the first modality; None for T2 or, where the model has none, its first label.

    Raises:
        ConfigError: for models of other kinds, of different grids or modalities, and for an unknown ``start_with``.
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
                f"model: expected one of kind 'label_conditional' to make the first modality, got {first.kind!r}; "
                "name demo/label or a run of the stage2_label configs."
            )
        if set(names) != set(known) or first.grid != translator.generator.grid:
            raise ConfigError(
                f"expected two models of one grid and the same modalities, got {first.grid} with "
                f"{', '.join(names)} and {translator.generator.grid} with {', '.join(known)}; train them on the "
                "same data."
            )
        if start_with is not None and start_with not in names:
            raise ConfigError(
                f"first: expected one of {', '.join(names)}, got {start_with!r}; name a modality of the models."
            )
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
        device: str | torch.device = "auto",
        autoencoder: str | Path | None = None,
        control_strength: float | None = None,
        start_with: str | None = None,
        refine: bool = True,
        overrides: Overrides = (),
        detail: DetailChoice | None = BESIDE,
        details: Sequence[str | Path] = (),
    ) -> "PatientPipeline":
        """Build from run folders, checkpoints or exports, each of which samples as its own config defines.

        Raises CheckpointError and ConfigError.

        Args:
            model: label-conditional model.
            in_context: model that translates.
            controls: control runs; the transformer hash in each decides which model it belongs to.
            device: where to compute.
            autoencoder: where stage 1 is now, if it has moved.
            control_strength: instead of the recorded ones.
            start_with: see the class.
            refine: correct translations with the translator's refiner, where there is one.
            overrides: changes to the sampler of the label-conditional model, as of ``from_checkpoint``.
            detail: how volumes are sharpened; None for not.
            details: detail flows of either model, whose stage decides which it belongs to; others are looked for beside
                the models.
        """
        changes = _strength(control_strength, controls)
        device = torch_device(device)
        chosen = _by_stage(detail, details)
        first = MaskGiTPipeline.from_checkpoint(
            model, device=device, autoencoder=autoencoder, overrides=overrides, detail=None
        )
        first.find_detail(chosen["detail"], model, required=False)
        opened = CheckpointManager.open(in_context, stage="transformer")
        same = opened.header["inputs"].get("autoencoder", {}).get("sha256") == first.sha256["autoencoder"]
        translator = TranslationPipeline.from_checkpoint(
            opened,
            device=device,
            autoencoder=first.loaded_autoencoder if same else autoencoder,
            refine=refine,
            detail=None,
        )
        translator.find_detail(chosen["translation_detail"], in_context, required=False)
        if detail is not None:
            detail.require(first.detail, translator.detail)
        bases = {"first_control": first, "translator_control": translator.generator}
        steering: dict[str, Any] = {}
        for path in controls:
            control = CheckpointManager.open(path, stage="maskgit_controlnet")
            recorded = control.header["inputs"]["transformer"]["sha256"]
            place = next(
                (name for name, base in bases.items() if base.sha256["transformer"] == recorded), None
            )
            if place is None:
                raise ConfigError(
                    f"{path}: expected a control network trained on {model} or {in_context}, got that of another "
                    f"transformer (SHA-256 {recorded[:12]}…); name its models, or train it on these."
                )
            if place in steering:
                raise ConfigError(
                    f"{path}: expected one control network per model, got a second one; leave one out."
                )
            steering[place] = ControlPipeline.from_checkpoint(
                control,
                device=device,
                transformer=bases[place],
                overrides=[*changes, *(overrides if place == "first_control" else ())],
            )
        return cls(first=first, translator=translator, start_with=start_with, **steering)

    @property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of all checkpoints used, by role."""
        hashes = {f"label {name}": value for name, value in self.first.sha256.items()}
        hashes |= {f"in-context {name}": value for name, value in self.translator.sha256.items()}
        for name, control in (("label", self.first_control), ("in-context", self.translator_control)):
            if control is not None:
                hashes[f"{name} controlnet"] = control.generator.sha256["controlnet"]
        return hashes

    @property
    def detail(self) -> Finisher | None:
        """What finishes the first modality, or else the others; both have the same settings."""
        return self.first.detail or self.translator.detail

    @property
    def steered(self) -> list[ControlPipeline]:
        """The control networks that need a segmentation."""
        return [c for c in (self.first_control, self.translator_control) if c is not None and c.needs_seg]

    def check(self, has_seg: bool) -> None:
        """Refuse with a ConfigError a segmentation without control, and control without its segmentation."""
        if has_seg and not self.steered:
            raise ConfigError(
                "control: expected a control network for the segmentations, got none; add --control RUN, or leave "
                "out --seg."
            )
        if self.steered and not has_seg:
            raise ConfigError("seg: expected segmentations for the control network, got none; add --seg DIR.")

    def generate(
        self,
        indices: Sequence[int],
        *,
        seed: int = 0,
        segs: Sequence[PlacedSegmentation] = (),
        report: Callable[[float], None] | None = None,
    ) -> Iterator[GeneratedPatient]:
        """Yield the patients of ``indices``; patient k depends on ``seed + k`` and its segmentation alone.

        Args:
            indices: numbers of the patients.
            seed: of patient 0.
            segs: on the grid; patient k has segmentation k, from the first again when there are fewer.
            report: called with the number of patients done, fractions included.
        """
        self.check(bool(segs))
        for done, index in enumerate(indices):
            seg = segs[index % len(segs)] if segs else None
            images, head = self._images(seed + index, seg, within(report, done, 1))
            affine = self.first.affine if seg is None else seg.affine
            labels = None if seg is None else seg.seg
            yield GeneratedPatient(images, head, labels, affine.copy(), index, seed + index)

    def _images(
        self, seed: int, seg: PlacedSegmentation | None, report: Share
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the images, and their common head, bool ``[H W D]``."""
        part = 1 / len(self.order)
        label = self.first.label_map[self.start_with]
        sample = _steered(self.first_control, seg, label) or self.first.sample_tokens
        drawn = [derived_seed(seed, label)]
        condition = MaskGiTCondition(torch.tensor([label]), covariates=self.first.covariates_of(drawn))
        tokens = sample(condition, seeds=drawn, report=within(report, 0, part))
        volume = self.first.decode_tokens(tokens)
        head = head_of(volume)
        noise = self.first.detail if isinstance(self.first.detail, ScanNoise) else None
        if noise is None:
            volume = self.first.sharpened(volume, self.start_with, seed)
        images = {self.start_with: stripped(volume, head)}
        for done, name in enumerate(self.order[1:], start=1):
            label = self.translator.generator.label_map[name]
            made = self.translator.translate(
                dict(list(images.items())[: self.translator.max_sources]),
                name,
                head=head,
                seed=derived_seed(seed, label),
                sample=_steered(self.translator_control, seg, label),
                progress=within(report, done * part, part),
            )
            # What is not head in one modality is not head in any, as in a skull-stripped scan.
            images[name] = stripped(made.mean, head)
        if noise is not None:  # to all at the end: a translation follows its source, not the noise in it
            labels = self.first.label_map
            seeds = {name: derived_seed(seed, labels[name], DETAIL_STREAM) for name in images}
            images = {name: noise.sharpen(v, name, seed=seeds[name], head=head) for name, v in images.items()}
        return images, head


def _strength(value: float | None, controls: Sequence[str | Path]) -> list[tuple[str, Any]]:
    """Return the change to the configs of ``controls`` that sets their strength; ConfigError where there is none."""
    if value is None:
        return []
    if not controls:
        raise ConfigError(
            f"control_strength: expected control networks with it, got {value} alone; add --control RUN, or leave "
            "--control-strength out."
        )
    return [("control.control_strength", value)]


def _by_stage(choice: DetailChoice | None, paths: Sequence[str | Path]) -> dict[str, DetailChoice | None]:
    """Return the choice for each stage of detail flows."""
    chosen: dict[str, DetailChoice | None] = dict.fromkeys(("detail", "translation_detail"), choice)
    for path in paths:
        opened = CheckpointManager.open(path, stage=tuple(chosen))
        stage = opened.header["stage"]
        if choice is None or chosen[stage] != choice:
            got = "a second one" if choice is not None else "one where none is wanted"
            raise ConfigError(
                f"{path}: expected at most one detail flow of stage {stage}, got {got}; leave it out."
            )
        chosen[stage] = replace(choice, path=opened)
    return chosen


def _steered(
    control: ControlPipeline | None, seg: PlacedSegmentation | None, label: int
) -> Callable[..., torch.Tensor] | None:
    """Return the function that draws tokens under ``control``; None without control."""
    if control is None:
        return None

    def sample(condition: Any, *, seeds: Sequence[int], **arguments: Any) -> torch.Tensor:
        segs = repeated(seg.seg if seg is not None and control.needs_seg else None, len(seeds))
        return control.sample_tokens(
            condition, segs=segs, labels=[label] * len(seeds), seeds=seeds, **arguments
        )

    return sample
