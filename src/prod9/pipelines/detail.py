"""DetailPipeline: the last step of generation, from a soft volume to a sharp one with the noise of scans."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from prod9.config.schema import DetailSection
from prod9.detail.condition import DetailCondition
from prod9.detail.flow import DetailFlow
from prod9.detail.network import DetailNetwork
from prod9.devices import torch_device
from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_header import WrongStageError, recorded_config
from prod9.models.checkpoint_manager import CheckpointManager, Loaded, Source
from prod9.models.checkpoint_places import places_beside
from prod9.models.factory import ModelFactory
from prod9.pipelines.noise import SCANS, ScanNoise, draw_level, recorded_levels
from prod9.pipelines.placement import head_of

log = logging.getLogger("prod9")


@dataclass(frozen=True, kw_only=True)
class DetailChoice:
    """Which detail flow sharpens volumes, and how.

    Attributes:
        path: its run, checkpoint or export; None for what lies beside the model, if anything does.
        steps: from soft to sharp; None for the recorded number.
        noise: level of noise in units of intensities in [0, 1], 0 for none; None draws one of the training scans'.
    """

    path: Source | None = None
    steps: int | None = None
    noise: float | None = None

    def require(self, *found: "Finisher | None") -> None:
        """Refuse (ConfigError) steps where no detail flow was found, and noise where there is nothing to make it."""
        if self.steps is not None and not any(isinstance(one, DetailPipeline) for one in found):
            raise ConfigError(
                "detail: expected a detail flow to ask for steps, got none beside the model; train one, name it with "
                "--detail RUN, or leave --detail-steps out"
            )
        if self.noise is not None and not any(found):
            raise ConfigError(
                "detail: expected a detail flow to ask for noise, got none beside the model; train one, name it with "
                "--detail RUN, or leave --noise out"
            )


BESIDE = DetailChoice()
"""What lies beside the model, if anything does, as it was trained to be used."""


class DetailPipeline:
    """Sharpens volumes on the model's grid with a trained detail flow.

    Args:
        network: answers; put in evaluation mode and moved to ``device``.
        flow: that of its training.
        label_map: name to class label.
        levels: quantiles of the levels of noise of the training scans, by name.
        steps: from soft to sharp.
        noise: see :class:`DetailChoice`.
        decode: which translations it was trained on, ``mean`` or ``sample``; None for reconstructions.
        sha256: of its file.
        device: where to compute.

    Example:
        >>> from prod9.pipelines.detail import DetailPipeline
        >>> pipeline = DetailPipeline.from_checkpoint("outputs/demo/stage1_detail")  # doctest: +SKIP
        >>> sharp = pipeline.sharpen(volume, "T1", seed=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        network: DetailNetwork,
        flow: DetailFlow,
        label_map: Mapping[str, int],
        levels: Mapping[str, Sequence[float]],
        steps: int = 4,
        noise: float | None = None,
        decode: str | None = None,
        sha256: str = "",
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.flow = flow
        self.label_map = dict(label_map)
        self.levels = {name: np.asarray(values, dtype=np.float64) for name, values in levels.items()}
        self.steps = steps
        self.noise = noise
        self.decode = decode
        self.sha256 = sha256

    @classmethod
    def from_checkpoint(
        cls,
        path: Source,
        *,
        steps: int | None = None,
        noise: float | None = None,
        device: str | torch.device = "auto",
    ) -> Self:
        """Build from a run folder, checkpoint file or export folder of a detail flow.

        Raises CheckpointError, and ConfigError for steps or a level of noise that it was not trained for.

        Args:
            path: of the detail flow.
            steps: of its sampling; None as trained.
            noise: level of noise in the result; None as in the scans.
            device: where to compute.
        """
        device = torch_device(device)
        return cls.of_loaded(CheckpointManager.load_detail(path, device=device), steps, noise, device)

    @classmethod
    def of_loaded(
        cls,
        loaded: Loaded[DetailNetwork],
        steps: int | None,
        noise: float | None,
        device: str | torch.device,
    ) -> Self:
        """Build from a checkpoint that was loaded.

        Args:
            loaded: the network and its header.
            steps: of its sampling; None as trained.
            noise: level of noise in the result; None as in the scans.
            device: where to compute.
        """
        config, data = recorded_config(loaded, DetailSection), loaded.header["data"]
        most = config.sampler.max_steps
        if steps is not None and not 1 <= steps <= most:
            raise ConfigError(
                f"detail-steps: expected 1 to {most}, as many as {loaded.path} was trained for, got {steps}; choose "
                "fewer"
            )
        levels = recorded_levels(loaded.path, data)
        loudest = round(max(1.0, config.loss.max_level) * max(max(values) for values in levels.values()), 4)
        if noise is not None and not (math.isfinite(noise) and 0.0 <= noise <= loudest):
            raise ConfigError(
                f"noise: expected 0 to {loudest}, the levels that {loaded.path} was trained on, got {noise}; choose "
                "one of them"
            )
        return cls(
            network=loaded.network,
            flow=ModelFactory.create_detail_flow(config.flow),
            label_map=data["label_map"],
            levels=levels,
            steps=steps or config.sampler.steps,
            noise=noise,
            decode=config.decode,
            sha256=loaded.sha256,
            device=device,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its results beside its weights, as plain values."""
        return {"steps": self.steps, "noise": SCANS if self.noise is None else self.noise}

    @torch.inference_mode()
    def sharpen(
        self,
        soft: np.ndarray,
        label: str,
        *,
        seed: int,
        head: np.ndarray | None = None,
        sources: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return a sharp volume, float32 ``[H W D]`` in [0, 1], 0 outside of the head.

        All that is drawn comes from a generator with ``seed``. Raises ConfigError for an unknown label, and for sources
        that are missing or that it was not trained with.

        Args:
            soft: float32 ``[H W D]`` in [0, 1].
            label: name of its class.
            seed: of the level of noise and the start noise; they are the same at any number of steps.
            head: bool ``[H W D]``; by default what ``head_of`` finds in ``soft``.
            sources: of a translation, name → volume like ``soft``.
        """
        if label not in self.label_map or label not in self.levels:
            raise ConfigError(
                f"label: expected one of {', '.join(self.levels)}, which the detail flow was trained on, got "
                f"{label!r}; pass --no-detail for others"
            )
        generator = torch.Generator(self.device).manual_seed(seed)
        # Drawn also when a level was asked for, so that volumes of all levels share their start noise.
        share = torch.rand((), generator=generator, device=self.device).item()
        level = draw_level(self.levels[label], share) if self.noise is None else self.noise
        inside = head_of(soft) if head is None else head
        given = self._sources(sources or {}, soft.shape)
        told = DetailCondition(
            soft=torch.from_numpy(np.array(soft, dtype=np.float32))[None, None],
            label=torch.tensor([self.label_map[label]]),
            noise=torch.tensor([level], dtype=torch.float32),
            head=torch.from_numpy(np.array(np.broadcast_to(inside, soft.shape)))[None, None],
            **given,
        )
        sharp = self.flow.sample(self.network, told.to(self.device), self.steps, generator)
        return sharp[0, 0].clamp(0.0, 1.0).cpu().numpy()

    def _sources(self, sources: Mapping[str, np.ndarray], shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the sources as the network takes them."""
        slots = self.network.num_sources
        known = list(self.label_map) if slots else []
        unknown = [name for name in sources if name not in known]
        if unknown or (slots and not sources):
            wanted = f"some of {', '.join(known)}" if slots else "none"
            raise ConfigError(
                f"sources: expected {wanted}, as the detail flow was trained with, got {', '.join(sources) or 'none'}; "
                "pass those, or --no-detail"
            )
        if not slots:
            return {}
        held, present = torch.zeros(1, slots, *shape), torch.zeros(1, slots, dtype=torch.bool)
        for name, volume in sources.items():
            held[0, self.label_map[name]] = torch.from_numpy(np.array(volume))
            present[0, self.label_map[name]] = True
        return {"sources": held, "present": present}


@dataclass(frozen=True, kw_only=True)
class DetailBase:
    """What a detail flow has to belong to.

    Attributes:
        stage: of the detail flow.
        key: of its ``inputs``.
        sha256: of the checkpoint that must be recorded there.
        beside: the runs, checkpoints and exports beside which it is looked for.
        label_map: of the model.
        refiner: hash of the refiner that corrects the soft volumes; None without one.
        scans: the ``data`` of the autoencoder's header, which may hold the noise of its training scans: what to add
            where there is no detail flow. None adds none, as to translations: no noise of ours would be the scan's.
    """

    stage: str
    key: str
    sha256: str
    beside: Sequence[Source]
    label_map: Mapping[str, int]
    refiner: str | None = None
    scans: Mapping[str, Any] | None = None

    def places(self) -> Iterator[Path]:
        """Yield the folders where it may be, the nearest first."""
        for model in self.beside:
            yield from (place for place in places_beside(Path(model), "detail") if place.is_dir())

    def require(self, loaded: Loaded[DetailNetwork]) -> None:
        """Refuse (CheckpointError) a detail flow of another model."""
        recorded = loaded.header["inputs"][self.key]["sha256"]
        if recorded != self.sha256:
            raise CheckpointError(
                f"{loaded.path}: expected the detail flow of the {self.key} in use ({self.sha256[:12]}…), got that of "
                f"another ({recorded[:12]}…), whose volumes it sharpens. Train one for this one, or pass --no-detail."
            )
        if loaded.header["data"]["label_map"] != self.label_map:
            raise CheckpointError(
                f"{loaded.path}: expected the labels {dict(self.label_map)} of the model, got "
                f"{loaded.header['data']['label_map']}; train it again with the same data.label_map."
            )
        refiner = loaded.header["data"].get("refiner")
        if refiner != self.refiner:
            names = [("none" if one is None else f"{one[:12]}…") for one in (self.refiner, refiner)]
            raise CheckpointError(
                f"{loaded.path}: expected the detail flow of translations that the refiner in use has corrected "
                f"({names[0]}), got that of another ({names[1]}). Train one for this one, or pass --no-detail."
            )


def find_detail(
    choice: DetailChoice | None, base: DetailBase, device: str | torch.device, *, required: bool = True
) -> "Finisher | None":
    """Return the detail flow that was chosen, or what lies beside the model and fits, or else the noise of scans.

    None where there is nothing of these. For a run or an export folder ``RUN`` it is looked for in ``RUN_detail`` and
    ``RUN/detail``. Raises CheckpointError where the one that was named does not fit, ConfigError for steps or noise
    that it does not know.

    Args:
        choice: which, and how; None for none.
        base: what it has to belong to.
        device: where to compute.
        required: refuse (ConfigError) steps and noise that are asked for where there is none.
    """
    if choice is None:
        return None
    if choice.path is not None:
        return _load(choice.path, choice, base, device)
    for place in base.places():
        try:
            return _load(place, choice, base, device)
        except WrongStageError:
            continue  # of another kind of volumes, which lies where it should
        except CheckpointError as error:
            log.warning("%s Going on without that detail flow.", error)
    found = _scan_noise(choice, base)
    if required:
        choice.require(found)
    return found


def _scan_noise(choice: DetailChoice, base: DetailBase) -> ScanNoise | None:
    """Return what adds the noise of scans to volumes without detail flow; None where it is not known or not wanted."""
    if base.scans is None:
        return None
    levels = recorded_levels(Path(base.key), base.scans) if base.scans.get("noise") else {}
    if choice.noise is not None and not (math.isfinite(choice.noise) and 0.0 <= choice.noise <= 1.0):
        raise ConfigError(
            f"noise: expected a level of 0 to 1, in intensities, got {choice.noise}; choose one of them"
        )
    return ScanNoise(levels=levels, noise=choice.noise) if levels or choice.noise is not None else None


def _load(path: Source, choice: DetailChoice, base: DetailBase, device: str | torch.device) -> DetailPipeline:
    loaded = CheckpointManager.load_detail(path, stage=base.stage, device=device)
    base.require(loaded)
    return DetailPipeline.of_loaded(loaded, choice.steps, choice.noise, device)


Finisher = DetailPipeline | ScanNoise
"""What is done to a volume after decoding."""
