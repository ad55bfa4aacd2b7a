"""From what a dataset is and what a machine has to configurations that run: crops, batches and networks that fit.

:mod:`prod9.planning.candidates` lists what may be chosen, the best first. Nothing here imports torch; the caller
counts the parameters of networks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeVar

from prod9.config.schema import (
    AutoencoderConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    MaskGiTControlNetLightningConfig,
    RunConfig,
    TransformerConfig,
)
from prod9.errors import ConfigError
from prod9.planning.autoencoder import autoencoder_work
from prod9.planning.candidates import FLOW_FACTOR, Candidates, Values
from prod9.planning.control import control_work
from prod9.planning.estimates import OVERHEAD, Autoencoder, Base, CountParameters, Resources, estimate
from prod9.planning.flow import flow_work
from prod9.planning.footprint import GIB, Device
from prod9.planning.transformer import transformer_work
from prod9.stages import Family

USABLE = 0.9
"""Share of a device's memory that is planned with."""
_PROCESS_BYTES = int(0.94 * GIB)
"""Python, torch, MONAI and Lightning, before anything is trained."""
_TOKENS = {4: 4096, 8: 12000}
"""Downsampling factor → most tokens per volume that a transformer attends to at ease; beyond the last it is 16."""
_PARAMETERS_PER_TOKEN = 20
"""Transformers with more parameters per token of the training data than this learn the patients by heart."""

C = TypeVar("C", bound=RunConfig)
C_co = TypeVar("C_co", bound=RunConfig, covariant=True)


@dataclass(frozen=True, kw_only=True)
class StagePlan(Generic[C_co]):
    """One configuration and what it needs.

    Attributes:
        values: as written to the file.
        config: the same, checked.
        resources: for its training.
        peak_bytes: the peak memory of a GPU, or of the whole process on a CPU, libraries included: there, processes
            of two sizes stayed 5 and 15% below it.
        multiplications: multiply-adds of a training step.
    """

    values: Values
    config: C_co
    resources: Resources
    peak_bytes: int
    multiplications: float


def peak_bytes(needs: Resources, device: Device) -> int:
    """Return the peak memory of a GPU, or of the whole process on a CPU."""
    if device == "cuda":
        return needs.memory_bytes
    # No workspaces to allow for, but a process around the step.
    return int(needs.memory_bytes / OVERHEAD) + _PROCESS_BYTES


@dataclass(frozen=True, kw_only=True)
class _Chooser:
    """Takes the first candidate that fits.

    Attributes:
        budget: bytes of memory of one device to plan with.
        device: where it trains.
        count: counts the parameters of a configuration.
        muon: whether Muon steps the hidden matrices.
        devices: number of devices; stages that can divide their weights over them do.
    """

    budget: int
    device: Device
    count: CountParameters
    muon: bool = False
    devices: int = 1

    def _with_settings(self, kind: type[C], values: Values) -> Values:
        """Return ``values`` for the optimizer and the number of devices that are planned for."""
        training, trainer = dict(values["training"]), dict(values.get("trainer", {}))
        if self.muon:
            training["muon"] = {}
        if self.devices > 1:
            trainer["devices"] = self.devices
            if kind.can_shard:
                trainer["strategy"] = "fsdp"
                training["channels_last"] = False  # sharding slices contiguous weights
        return {**values, "training": training, **({"trainer": trainer} if trainer else {})}

    def first_fit(
        self,
        kind: type[C],
        candidates: Iterator[Values],
        work: Callable[[C, Resources], float],
        *,
        autoencoder: Autoencoder | None = None,
        base: Base | None = None,
        most_parameters: float = float("inf"),
    ) -> StagePlan[C]:
        """Return the first candidate within the budget, and within the parameters unless it is the smallest network.

        Args:
            kind: the class of the candidates' configurations.
            candidates: values of configurations, the best first.
            work: multiply-adds of a training step.
            autoencoder: the stage-1 model below.
            base: what a stage 3 steers.
            most_parameters: how large the network may be.

        Raises:
            ConfigError: when not even the smallest network fits.
        """
        peaks: list[int] = []
        last = None
        for values in (self._with_settings(kind, each) for each in candidates):
            config = kind.model_validate(values)
            needs = estimate(config, count=self.count, base=base, autoencoder=autoencoder, device=self.device)
            peak = peak_bytes(needs, self.device)
            peaks.append(peak)
            if peak <= self.budget:
                fitting = StagePlan(
                    values=values,
                    config=config,
                    resources=needs,
                    peak_bytes=peak,
                    multiplications=work(config, needs),
                )
                if needs.parameters <= most_parameters:
                    return fitting
                # Of the smallest network, the first that fits has the largest batch.
                if last is None or needs.parameters < last.resources.parameters:
                    last = fitting
        if last is not None:
            return last
        raise ConfigError(
            f"--memory: expected at least {min(peaks, default=0) / USABLE / GIB:.1f} GiB for the smallest network "
            f"on this grid, got {self.budget / USABLE / GIB:.1f}; resample to larger voxels (data.spacing), or use a "
            "larger device"
        )

    def transformer(
        self, candidates: Iterator[Values], stage1: StagePlan[AutoencoderConfig], images: int
    ) -> StagePlan[TransformerConfig]:
        """Return a stage 2 of MaskGiT on ``stage1``, for a dataset of so many ``images``."""
        return self.first_fit(
            TransformerConfig,
            candidates,
            transformer_work,
            autoencoder=stage1.config.model,
            most_parameters=_PARAMETERS_PER_TOKEN * 2 * images * stage1.resources.tokens,
        )

    def control(
        self,
        kind: type[C],
        candidates: Iterator[Values],
        base: StagePlan[TransformerConfig] | StagePlan[MaisiDiffusionConfig],
        autoencoder: Autoencoder,
    ) -> StagePlan[C]:
        """Return a stage 3 on ``base``, from whose work its own follows."""
        work = base.multiplications / base.config.data.batch_size
        return self.first_fit(
            kind,
            candidates,
            lambda config, _: config.data.batch_size * control_work(config, base.config, work),
            autoencoder=autoencoder,
            base=base.config,
        )


def plan_family(
    fingerprint: Mapping[str, Any],
    *,
    family: Family,
    memory_bytes: int,
    device: Device,
    output_dir: str,
    count: CountParameters,
    muon: bool = False,
    devices: int = 1,
) -> dict[str, StagePlan[RunConfig]]:
    """Return the plan of every stage of ``family`` that the data allow, by its name, earlier stages first.

    A translation (``stage2``) needs two modalities, or MedMNIST3D, where it learns from examples; stage 3 needs
    segmentations, or MedMNIST3D, whose foregrounds take their place.

    Args:
        fingerprint: of ``prod9 data info``.
        family: whose stages to plan.
        memory_bytes: of the device.
        device: where it is trained.
        output_dir: the folder below which the runs go.
        count: counts the parameters of a configuration.
        muon: whether Muon steps the hidden matrices (``training.muon``).
        devices: number of devices of that memory; stage 2 divides its weights over them (``trainer.strategy: fsdp``).

    Raises:
        ConfigError: when not even the smallest network fits.
    """
    chooser = _Chooser(
        budget=int(USABLE * memory_bytes),
        device=device,
        count=counted_once(count),
        muon=muon,
        devices=devices,
    )
    plan = {"maskgit": _plan_maskgit, "maisi": _plan_flow}[family]
    return plan(fingerprint, chooser, output_dir)


def _plan_maskgit(
    fingerprint: Mapping[str, Any], chooser: _Chooser, output_dir: str
) -> dict[str, StagePlan[RunConfig]]:
    lists = Candidates(fingerprint=fingerprint, device=chooser.device, output_dir=output_dir)
    images = images_of(fingerprint)
    stage1 = chooser.first_fit(
        AutoencoderConfig,
        lists.stage1("fsq", downsampling_for(fingerprint["grid"])),
        lambda config, _: autoencoder_work(config),
    )
    label = chooser.transformer(lists.label(), stage1, images)
    plans: dict[str, StagePlan[RunConfig]] = {"stage1": stage1, "stage2_label": label}
    if lists.small or len(lists.modalities) > 1:
        plans["stage2"] = chooser.transformer(lists.in_context(stage1.resources.tokens), stage1, images)
    if lists.small or fingerprint["segmentations"]:
        plans["stage3"] = chooser.control(
            MaskGiTControlNetLightningConfig, lists.control_maskgit(), label, stage1.config.model
        )
    return plans


def _plan_flow(
    fingerprint: Mapping[str, Any], chooser: _Chooser, output_dir: str
) -> dict[str, StagePlan[RunConfig]]:
    lists = Candidates(fingerprint=fingerprint, device=chooser.device, output_dir=output_dir, first_label=1)
    vae = chooser.first_fit(
        MaisiVAEConfig, lists.stage1("kl", FLOW_FACTOR), lambda config, _: autoencoder_work(config)
    )
    model = vae.config.model
    flow = chooser.first_fit(
        MaisiDiffusionConfig,
        lists.flow(),
        lambda config, needs: flow_work(config, needs.positions, model.latent_channels),
        autoencoder=model,
    )
    plans: dict[str, StagePlan[RunConfig]] = {"maisi_vae": vae, "maisi_diffusion": flow}
    if lists.small or fingerprint["segmentations"]:
        plans["maisi_controlnet"] = chooser.control(MaisiControlNetConfig, lists.control_flow(), flow, model)
    return plans


def images_of(fingerprint: Mapping[str, Any]) -> int:
    """Return how many volumes there are to encode, mirrors not counted."""
    return fingerprint["cases"] * sum(
        number == fingerprint["cases"] for number in fingerprint["modalities"].values()
    )


def downsampling_for(grid: Sequence[int]) -> int:
    """Return the voxels that a token spans along each axis: the fewest that leave tokens to attend to at ease."""
    return next((factor for factor, most in _TOKENS.items() if prod(grid) / factor**3 <= most), 16)


def counted_once(count: CountParameters) -> CountParameters:
    """Return ``count`` with a memory: candidates that differ in crops and batches alone have the same network."""
    counts: dict[str, int] = {}

    def counted(config: RunConfig, base: Base | None, autoencoder: Autoencoder | None) -> int:
        sections = [config.model_dump_json(include={"stage", "model", "condition", "loss"})]
        sections += [section.model_dump_json() for section in (base, autoencoder) if section is not None]
        key = "".join(sections)
        if key not in counts:
            counts[key] = count(config, base, autoencoder)
        return counts[key]

    return counted
