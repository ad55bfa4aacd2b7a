"""From some modalities of a patient to a missing one: encode, sample in context, decode, refine, sharpen.

Input and output volumes are on the model's grid; :mod:`prod9.pipelines.placement` brings files there and back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.config.schema import ContextConfig, RunConfig
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.modality_processor import InContextCondition
from prod9.generator.refiner import Refined
from prod9.modalities import known_as, spelt
from prod9.models.checkpoint_manager import Loaded, Source
from prod9.pipelines.detail import BESIDE, DetailBase, DetailChoice, DetailPipeline, find_detail
from prod9.pipelines.labels import DETAIL, DETAIL_STREAM, derived_seed, draw_samples
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.placement import GridPlacement
from prod9.pipelines.recorded import Overrides
from prod9.pipelines.refinement import LoadedRefiner, find_refiner, load_refiner
from prod9.system.progress import Share

Decode = Literal["sample", "mean"]
Volumes = Mapping[str, np.ndarray]
"""Modality → float32 ``[H W D]`` in [0, 1] on the model's grid."""


class Refine(Protocol):
    """Signature of a refiner."""

    def __call__(
        self,
        decoded: Tensor,
        sources: Tensor,
        present: Tensor,
        target_label: Tensor,
        head: Tensor | None = None,
    ) -> Refined:
        """Return a better ``decoded``, and the absolute error that is expected in it.

        Args:
            decoded: ``[B 1 H W D]``.
            sources: ``[B num_classes H W D]``, zeros where ``present`` is False.
            present: bool ``[B num_classes]``.
            target_label: int64 ``[B]``.
            head: bool ``[B H W D]``; None for where any source is above 0.
        """
        ...


@dataclass(frozen=True, eq=False)
class Translation:
    """The result of a translation, float32 ``[H W D]`` on the model's grid.

    Attributes:
        volumes: the samples, in [0, 1]; with ``decode="mean"`` and one sample the mean itself.
        mean: of the samples, or the volume of the expected codes.
        deviation: of several samples, per voxel; None for a single one. It is their standard deviation and, with a
            refiner and no detail flow, the deviation that the refiner expects within each, added as variances.
    """

    volumes: tuple[np.ndarray, ...]
    mean: np.ndarray
    deviation: np.ndarray | None


class TranslationPipeline:
    """Makes a modality from others with a trained decoder of kind ``single_stream`` or ``decoder``.

    Args:
        generator: loads, samples and decodes.
        context: the numbers of sources and examples that the decoder was trained on.
        refiner: improves decoded volumes with the sources at full resolution; None where there is none.
        detail: sharpens refined volumes; None where there is none.
    """

    def __init__(
        self,
        *,
        generator: MaskGiTPipeline,
        context: ContextConfig,
        refiner: Refine | None = None,
        detail: DetailPipeline | None = None,
    ) -> None:
        self.generator = generator
        self.context = context
        self.refiner = refiner
        self.detail = detail

    @classmethod
    def from_checkpoint(
        cls,
        path: Source,
        *,
        device: str | torch.device = "auto",
        autoencoder: Source | Loaded[AutoencoderFSQ] | None = None,
        overrides: Overrides = (),
        settings: RunConfig | None = None,
        refiner: Source | None = None,
        refine: bool = True,
        detail: DetailChoice | None = BESIDE,
    ) -> "TranslationPipeline":
        """Build from a stage-2 run folder, checkpoint file or export folder.

        Raises CheckpointError also for a refiner or a detail flow of another model, ConfigError also for a model
        that takes no sources.

        Args:
            refiner: its run, checkpoint or export; None for what lies beside the model, if anything does.
            refine: False loads no refiner.
            detail: the detail flow; by default what lies beside the model, if anything does, and None for none.
            others: see :meth:`MaskGiTPipeline.from_checkpoint`.
        """
        device = torch_device(device)
        generator = MaskGiTPipeline.from_checkpoint(
            path, device=device, autoencoder=autoencoder, overrides=overrides, settings=settings, detail=None
        )
        if generator.kind == "label_conditional":
            raise ConfigError(
                f"{path}: expected a model of kind 'single_stream' or 'decoder', got 'label_conditional', which takes "
                "no source; name demo/translate or a run of the stage2 configs, or use `prod9 generate label`."
            )
        chosen: Refine | None = None
        if refine:
            chosen = find_refiner(path, generator) if refiner is None else load_refiner(refiner, generator)
        pipeline = cls(generator=generator, context=generator.context, refiner=chosen)
        pipeline.find_detail(detail, path)
        return pipeline

    def find_detail(self, choice: DetailChoice | None, *beside: Source, required: bool = True) -> None:
        """Sharpen samples by the chosen detail flow, or by one that lies beside one of the models, if any does.

        required: refuse (ConfigError) steps and noise that are asked for where there is none.
        """
        base = DetailBase(
            stage="translation_detail",
            key="transformer",
            sha256=self.generator.sha256["transformer"],
            beside=beside,
            label_map=self.generator.label_map,
            refiner=self.refiner.sha256 if isinstance(self.refiner, LoadedRefiner) else None,
        )
        found = find_detail(choice, base, self.generator.device, required=required)
        self.detail = found if isinstance(found, DetailPipeline) else None

    @property
    def placement(self) -> GridPlacement:
        """What brings files to the model's grid."""
        return self.generator.placement

    @property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of each checkpoint used, by role; with ``refiner`` and ``detail`` where there are any."""
        more = {"refiner": self.refiner.sha256} if isinstance(self.refiner, LoadedRefiner) else {}
        if self.detail is not None:
            more[DETAIL] = self.detail.sha256
        return {**self.generator.sha256, **more}

    @property
    def max_sources(self) -> int:
        """The most sources that the model was trained on."""
        if self.generator.kind == "decoder":
            return 1
        config = self.generator.config
        return self.context.sources(
            len(self.generator.label_map) if config is None else config.data.images_per_case
        )[-1]

    @property
    def max_examples(self) -> int:
        """The most examples from other patients that the model was trained on."""
        return 0 if self.generator.kind == "decoder" else self.context.max_examples

    def check(
        self, sources: Sequence[str], target: str, *, num_examples: int = 0, decode: str = "sample"
    ) -> None:
        """Refuse with a ConfigError what the model cannot translate, before anything is computed.

        Args:
            sources: modalities that are there.
            target: the modality to make.
            num_examples: other patients that are shown.
            decode: how tokens become volumes.
        """
        if decode not in get_args(Decode):
            raise ConfigError(f"decode: expected {' or '.join(get_args(Decode))}, got {decode!r}.")
        known = self.generator.label_names()
        unknown = [name for name in (*sources, target) if name not in known]
        if unknown:
            raise ConfigError(
                f"expected modalities among {', '.join(known)}, got {', '.join(unknown)}; the model has no other."
            )
        if target in sources:
            raise ConfigError(
                f"expected a target that is not among the sources, got {target} as both; leave it out of the sources."
            )
        most = self.max_sources
        fewest = 1 if self.generator.kind == "decoder" else self.context.min_sources
        if not fewest <= len(sources) <= most:
            wanted = str(most) if fewest == most else f"{fewest} to {most}"
            raise ConfigError(
                f"expected {wanted} sources, as in training, got {len(sources)} ({', '.join(sources) or 'none'}); "
                "give others, or train with another context."
            )
        if num_examples > self.max_examples:
            raise ConfigError(
                f"expected at most {self.max_examples} examples from other patients, as in training, "
                f"got {num_examples}; leave some out, or train with context.max_examples={num_examples}."
            )

    @torch.inference_mode()
    def translate(
        self,
        sources: Volumes,
        target: str,
        *,
        head: np.ndarray | None = None,
        num_samples: int = 1,
        seed: int = 0,
        decode: Decode = "sample",
        examples: Sequence[Volumes] = (),
        refine: bool = True,
        batch_size: int = 1,
        sample: Callable[..., Tensor] | None = None,
        progress: Share | None = None,
    ) -> Translation:
        """Return ``target`` made from ``sources``, whose order does not matter; 0 outside of the head.

        With a detail flow, samples are sharp. One that was trained on means starts from the refined mean in every
        sample, and no tokens are drawn; under control (``sample``), tokens are drawn all the same.

        Args:
            sources: modality, in any case or by an alias → volume on the grid.
            target: the modality to make, likewise.
            head: bool ``[H W D]``, True in the head; by default where any source is above 0, which leaves holes
                where all sources have the darkest intensity.
            num_samples: how many to draw, sample k from ``derived_seed(seed + k, label of target)``, so that two
                targets of a patient have no noise in common.
            seed: of sample 0.
            decode: ``sample``, or ``mean``: the mean is decoded from the expected codes (least squared error, no
                draw), and samples are drawn only for a deviation, when ``num_samples`` is above 1.
            examples: other patients, each with the target and any of the sources' modalities.
            refine: False leaves volumes as they are decoded, and draws no detail.
            batch_size: samples drawn together; none depends on it.
            sample: draws tokens instead of the generator's own ``sample_tokens``, e.g. under control.
            progress: called with the share done.
        """
        known = self.generator.label_names()
        sources, target = spelt("sources", sources, known), known_as(target, known)
        examples = [spelt("examples", one, known) for one in examples]
        self.check(list(sources), target, num_examples=len(examples), decode=decode)
        condition = self._condition(sources, target, examples)
        detail = self.detail if refine else None
        inside = _head(sources) if head is None else head
        within: list[np.ndarray] = []

        def finish(volume: np.ndarray) -> np.ndarray:
            if refine and self.refiner is not None:
                better, error = self.refined(volume, sources, target, head)
                within.append(error)
                return better
            return np.where(inside, volume, np.float32(0.0))

        def expected() -> np.ndarray:
            return finish(self.generator.decode_latent(self.generator.expected_codes(condition)))

        drawn: list[np.ndarray] = []
        if decode == "sample" or num_samples > 1:
            if detail is not None and detail.decode == "mean" and sample is None:
                drawn = [expected()] * num_samples
            else:
                samples = draw_samples(
                    partial(_draw, sample or self.generator.sample_tokens, condition),
                    label=self.generator.label_map[target],
                    num_samples=num_samples,
                    seed=seed,
                    batch_size=batch_size,
                    report=None if progress is None else lambda done: progress(done / num_samples),
                )
                drawn = [finish(self.generator.decode_tokens(tokens)) for _, tokens in samples]
            if detail is not None:
                drawn = self._sharp(detail, drawn, sources, target, inside, seed)
        # Sharp samples differ as the truth may; what the refiner expects within each would count it twice.
        deviation = _deviation(drawn, within if detail is None else ()) if num_samples > 1 else None
        if decode == "mean":
            mean = expected()
        else:
            mean = drawn[0] if num_samples == 1 else np.asarray(np.mean(drawn, axis=0, dtype=np.float32))
        if progress is not None:
            progress(1.0)
        return Translation(tuple(drawn or [mean]), mean, deviation)

    def _sharp(
        self,
        detail: DetailPipeline,
        drawn: Sequence[np.ndarray],
        sources: Volumes,
        target: str,
        head: np.ndarray,
        seed: int,
    ) -> list[np.ndarray]:
        """Return samples ``drawn`` as ``detail`` sharpens them, sample k with what it draws for ``seed + k``."""
        label = self.generator.label_map[target]
        return [
            detail.sharpen(
                volume,
                target,
                seed=derived_seed(seed + index, label, DETAIL_STREAM),
                head=head,
                sources=sources,
            )
            for index, volume in enumerate(drawn)
        ]

    def _condition(
        self, sources: Volumes, target: str, examples: Sequence[Volumes]
    ) -> InContextCondition | MaskGiTCondition:
        """Return the condition of one sample."""
        labels = self.generator.label_map
        # In the order of their labels, whatever the order given: then not even rounding depends on it.
        names = sorted(sources, key=labels.__getitem__)
        if self.generator.kind == "decoder":
            (name,) = names
            return MaskGiTCondition(
                label=torch.tensor([labels[target]]),
                source_latent=self.generator.encode(sources[name])[None],
                source_label=torch.tensor([labels[name]]),
            )
        rows = [(name, sources[name], True) for name in names]
        for number, example in enumerate(examples):
            if target not in example:
                raise ConfigError(
                    f"expected every example to show the target {target}, got {', '.join(example)} in example "
                    f"{number}; leave it out."
                )
            rows += [(name, example[name], False) for name in (target, *names) if name in example]
        latents = [self.generator.encode(volume) for _, volume, _ in rows]
        levels = self.generator.autoencoder.tokenizer.levels
        empty = torch.zeros(0, len(levels), *self.generator.latent_grid)
        return InContextCondition(
            target_label=torch.tensor([labels[target]]),
            source_labels=torch.tensor([[labels[name] for name, _, _ in rows]], dtype=torch.int64),
            source_latents=(torch.stack(latents) if latents else empty)[None],
            co_registered=torch.tensor([[near for _, _, near in rows]], dtype=torch.bool),
        )

    @torch.inference_mode()
    def refined(
        self, volume: np.ndarray, sources: Volumes, target: str, head: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a decoded volume as corrected by the refiner, in [0, 1], and its expected absolute error.

        Both are 0 outside of the head, as every result of ``translate`` is.

        Args:
            volume: ``[H W D]`` as decoded.
            sources: modality → volume on the grid.
            target: the modality of ``volume``.
            head: bool ``[H W D]``; None for where any source is above 0.
        """
        assert self.refiner is not None, "callers look whether there is one"
        labels, device = self.generator.label_map, self.generator.device
        held = torch.zeros(1, max(labels.values()) + 1, *volume.shape)
        present = torch.zeros(held.shape[:2], dtype=torch.bool)
        for name, source in sources.items():
            held[0, labels[name]] = torch.from_numpy(source)
            present[0, labels[name]] = True
        decoded = torch.from_numpy(volume)[None, None].to(device)
        wanted = torch.tensor([labels[target]], device=device)
        known = {} if head is None else {"head": torch.from_numpy(head)[None].to(device)}
        better = self.refiner(decoded, held.to(device), present.to(device), wanted, **known)
        head = _head(sources) if head is None else head
        made, error = (x[0, 0].float().clamp(0.0, 1.0).cpu().numpy() for x in better)
        return np.where(head, made, np.float32(0.0)), np.where(head, error, np.float32(0.0))


def _head(sources: Volumes) -> np.ndarray:
    """Return bool ``[H W D]``: where any source is above 0, everywhere without sources.

    Decoders leave a rim around the head that no scan has.
    """
    return np.any([source > 0 for source in sources.values()], axis=0) if sources else np.asarray(True)


def _deviation(samples: Sequence[np.ndarray], within: Sequence[np.ndarray]) -> np.ndarray:
    """Return the deviation over samples; ``within`` holds the absolute error expected in each, if anything.

    By the law of total variance. A Laplace distribution of mean absolute error b has variance 2 b².
    """
    variance = np.var(samples, axis=0, dtype=np.float32)
    if within:
        variance = variance + 2 * np.mean(np.square(within), axis=0, dtype=np.float32)
    return np.asarray(np.sqrt(variance))


def _draw(
    sample: Callable[..., Tensor],
    condition: InContextCondition | MaskGiTCondition,
    seeds: Sequence[int],
    report: Share,
) -> Tensor:
    """Return one token grid per seed."""
    return sample(_repeated(condition, len(seeds)), seeds=seeds, report=report)


def _repeated(
    condition: InContextCondition | MaskGiTCondition, count: int
) -> InContextCondition | MaskGiTCondition:
    """Return a batch of ``count`` copies of a condition of one sample."""
    given = {
        name: value.expand(count, *value.shape[1:])
        for name, value in vars(condition).items()
        if value is not None
    }
    return replace(condition, **given)
