"""The sections that stages share: optimisation, hardware, callbacks, inference windows, and the base of all roots.

Imported by :mod:`prod9.config.schema`; import the sections from there.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prod9.config.data import AnyDataConfig
from prod9.config.types import (
    Count,
    Fraction,
    NonNegative,
    Place,
    Positive,
    PositiveInt,
    Positives,
    Range,
    Section,
    Seed,
    Triple,
)
from prod9.errors import ConfigError
from prod9.stages import GENERATORS

# -- training -------------------------------------------------------------------------------------


class LrScheduleConfig(Section):
    """Learning rate over training steps."""

    kind: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="Decay after warm-up and plateau."
    )
    warmup_steps: Count = Field(default=100, description="Linear warm-up from zero.")
    flat_fraction: Fraction = Field(
        default=0.0, description="Share of the steps at full rate before the decay."
    )
    final_fraction: Fraction = Field(default=0.02, description="Last rate over the full rate.")


class EMAConfig(Section):
    """Exponential moving average of the weights."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.9999, description="Decay per training batch."
    )
    start_step: Count = Field(default=0, description="First step that is averaged.")


class MuonConfig(Section):
    """Orthogonal steps (Muon) for matrices and kernels between hidden features; AdamW keeps the rest."""

    rate: Positive = Field(default=1.0, description="Rate of hidden matrices over `learning_rate`.")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.95, description="Nesterov momentum.")
    iterations: PositiveInt = Field(default=5, description="Newton-Schulz iterations.")


class TrainingConfig(Section):
    """Optimisation. A step is one training batch, whatever the number of optimizers."""

    max_steps: PositiveInt = Field(default=100_000, description="Training batches.")
    learning_rate: Positive = Field(default=1e-4, description="Peak learning rate.")
    betas: Range = Field(default=(0.9, 0.95), description="AdamW betas.")
    weight_decay: NonNegative = Field(default=0.01, description="Weight decay.")
    muon: MuonConfig | None = Field(
        default=None, description="Muon for hidden matrices; null: AdamW for all weights."
    )
    lr_schedule: LrScheduleConfig = Field(default=LrScheduleConfig(), description="Learning-rate schedule.")
    gradient_clip_norm: NonNegative = Field(default=1.0, description="Clip the gradient norm; 0 never clips.")
    ema: EMAConfig | None = Field(default=None, description="Weight averaging; null for none.")
    validate_every_steps: PositiveInt = Field(default=1000, description="Steps between validations.")
    validate_start: bool = Field(
        default=False,
        description="Validate the weights of --init-from before the first step, and keep them if no step is better.",
    )
    log_every_steps: PositiveInt = Field(default=20, description="Steps between logged values.")
    max_skipped_steps: PositiveInt = Field(
        default=10, description="Stop after so many steps with non-finite loss in a row."
    )
    channels_last: bool = Field(default=True, description="channels_last_3d memory format for convolutions.")
    compile: bool = Field(default=False, description="torch.compile the network.")

    @model_validator(mode="after")
    def _betas_are_decays(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers of at least 0 and below 1, got {list(self.betas)}")
        return self


class TrainerConfig(Section):
    """Where and how it runs."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = Field(default="auto", description="Device type.")
    devices: PositiveInt | list[int] | Literal["auto"] = Field(
        default=1, description="Number of devices, or their ids."
    )
    num_nodes: PositiveInt = Field(default=1, description="Machines.")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="`auto`: `ddp` on several devices; `fsdp`: weights in slices, stage 2 only.",
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        default="auto", description="`auto`: bf16-mixed on CUDA, 32-true elsewhere."
    )
    loggers: list[Literal["csv", "tensorboard", "jsonl", "wandb", "mlflow"]] = Field(
        default=["csv", "tensorboard"], description="Where values are logged."
    )
    progress: bool = Field(default=True, description="Progress bar.")

    @model_validator(mode="after")
    def _devices_are_different(self) -> Self:
        ids = self.devices if isinstance(self.devices, list) else [0]
        if not ids or min(ids) < 0 or len(set(ids)) < len(ids):
            raise ValueError(
                f"devices: expected a number, or different ids of 0 and above, got {ids}; correct it"
            )
        return self


class CheckpointConfig(Section):
    """Which states are kept."""

    monitor: str | None = Field(
        default=None, description="Metric that picks the best; null: the stage's default."
    )
    mode: Literal["min", "max"] | None = Field(
        default=None, description="Which value of it is best; null: as its name says."
    )
    save_top_k: PositiveInt = Field(default=1, description="Best checkpoints kept.")
    every_steps: PositiveInt | None = Field(
        default=None, description="Save `last` so often; null: after validation."
    )
    keep_early: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None,
        description="Also keep the weights at this share of the steps, to guide by (autoguidance), unless the run "
        "starts from trained weights; null: no such file.",
    )


class EarlyStoppingConfig(Section):
    """Stop when the monitored metric no longer improves."""

    patience: PositiveInt = Field(default=10, description="Validations without improvement.")
    min_delta: NonNegative = Field(default=0.0, description="Smallest change that counts.")


class CombinedMetricConfig(Section):
    """Weights of ``val/combined_metric`` (higher is better)."""

    psnr: NonNegative = Field(default=1.0, description="Weight of PSNR / 40 dB.")
    ssim: NonNegative = Field(default=1.0, description="Weight of SSIM.")
    lpips: NonNegative = Field(default=0.0, description="Weight of 1 - LPIPS; needs local weights.")

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not self.psnr + self.ssim + self.lpips > 0:
            raise ValueError(
                "psnr, ssim and lpips: expected a weight above 0 among them, got 0 for all; set one"
            )
        return self


class CallbacksConfig(Section):
    """Callbacks."""

    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="Checkpoints.")
    early_stopping: EarlyStoppingConfig | None = Field(
        default=None, description="Early stopping; null for none."
    )
    combined_metric: CombinedMetricConfig = Field(
        default=CombinedMetricConfig(), description="Stage 1 selection."
    )
    lr_monitor: bool = Field(default=True, description="Log the learning rate.")
    num_samples: Count = Field(
        default=4, description="Volumes in the picture written at each validation; 0 for none."
    )


class SlidingWindowSection(Section):
    """SlidingWindowConfig: memory-safe encoding and decoding."""

    roi_size: Triple = Field(default=(64, 64, 64), description="Window in voxels.")
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.5, description="Overlap of windows.")
    sw_batch_size: PositiveInt = Field(default=1, description="Windows at a time.")
    mode: Literal["gaussian", "constant", "mean"] = Field(default="gaussian", description="Blending.")
    strategy: Literal["whole", "sliding_window", "exact"] = Field(
        default="whole",
        description="`whole` in one pass; for bounded memory `exact`, the same result in slabs, or "
        "`sliding_window`, an approximation.",
    )
    num_slabs: PositiveInt = Field(default=32, description="`exact`: slabs along the first axis.")
    keep_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="`exact`: of activations between layers, kept on the CPU."
    )
    max_attention_tokens: PositiveInt = Field(
        default=32768, description="`exact`: attention over more positions is refused."
    )


class InputsConfig(Section):
    """Checkpoints of earlier stages."""

    autoencoder: str | None = Field(default=None, description="Stage-1 run folder or checkpoint.")


class BaseInputsSection(InputsConfig):
    """Checkpoints of a stage that builds on a stage 2."""

    autoencoder: str | None = Field(
        default=None, description="Stage 1 of that base, if it is no longer where the base's run recorded it."
    )


class RegionWeights(Section):
    """Loss weights of latent positions, or of tokens, by what is in their patch of the volume."""

    background_weight: Fraction = Field(
        default=0.25,
        description="Loss weight of positions whose patch of the volume is pure background; 1 weighs all alike.",
    )
    region_weight: Positive = Field(
        default=20.0,
        description="Loss weight of positions in or near a segmented class; 1 weighs all alike. MAISI uses 100.",
    )
    region_margin: Count = Field(default=1, description="How many positions around a class count as near it.")
    class_weights: Positives = Field(
        default=(),
        description="Factors of `region_weight` for the classes 1, 2, …, such as [1, 1, 3] for three times the weight "
        "on enhancing tumour; 1 for classes beyond the list. Near several classes the largest counts.",
    )


class AutoguidanceSection(Section):
    """What the samplers of both families know of a weaker network."""

    autoguidance_scale: NonNegative = Field(
        default=0.0,
        description="Guidance away from an earlier or smaller network; 0 loads none. It adds to `guidance_scale`, on "
        "the same steps.",
    )
    weak_model: str = Field(
        default="auto",
        description="That network: a run, checkpoint or export; `auto`: the earliest checkpoint that the run keeps.",
    )


class RunSection(Section):
    """The base of every root.

    Attributes:
        data_kinds: the dataset families that a stage can be trained on.
        takes_label_maps: whether it can be trained on label maps instead of scans.
        can_shard: whether ``trainer.strategy: fsdp`` can slice its network.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("brats",)
    takes_label_maps: ClassVar[bool] = False
    can_shard: ClassVar[bool] = False

    output_dir: Place = Field(description="Everything this run writes goes here.")
    seed: Seed = Field(default=0, description="Seed of all randomness in training.")
    data: AnyDataConfig = Field(description="Data.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="Optimisation.")
    trainer: TrainerConfig = Field(default=TrainerConfig(), description="Hardware and logging.")
    callbacks: CallbacksConfig = Field(default=CallbacksConfig(), description="Callbacks.")
    sliding_window: SlidingWindowSection = Field(
        default=SlidingWindowSection(), description="Inference windows."
    )

    @property
    def store_dir(self) -> Path:
        """Folder of the encoded volumes: ``data.store_dir``, or one below ``output_dir``."""
        return Path(self.data.store_dir or Path(self.output_dir) / "store")

    @property
    def seg_key(self) -> str | None:
        """The key that makes the run learn from segmentations; None if it does not."""
        return None

    @property
    def needs_start(self) -> bool:
        """Whether a new run has to begin with the weights of another, by ``--init-from``."""
        return False

    def require_start(self, init_from: str | Path | None) -> None:
        """Refuse a new run from random weights where it makes no sense; ConfigError."""
        if self.needs_start and init_from is None:
            raise ConfigError(
                "--init-from: expected a run or checkpoint whose encoder is kept, as freeze_encoder is true, got none; "
                "name one, or set freeze_encoder to false"
            )

    def base_path(self, key: str) -> str | None:
        """Return the path of a base under ``inputs.key``; None if it is not set, or there is no such key."""
        return getattr(getattr(self, "inputs", None), key, None)

    @property
    def variant(self) -> str:
        """Which recipe of a stage with several trains it."""
        return getattr(self, "model").kind  # noqa: B009 - a root adds it

    @model_validator(mode="after")
    def _stage_takes_label_maps(self) -> Self:
        if self.data.shows_labels and not self.takes_label_maps:
            raise ValueError(
                "data.modalities: expected scans in this stage, got [seg]; label maps are for the stages autoencoder "
                "and transformer"
            )
        return self

    @model_validator(mode="after")
    def _stage_takes_the_data(self) -> Self:
        if self.data.kind not in self.data_kinds:
            raise ValueError(
                f"data.kind: expected {' or '.join(self.data_kinds)} in this stage, got {self.data.kind}; see "
                "`prod9 configs list` for configs that train on it"
            )
        return self

    @model_validator(mode="after")
    def _sharding_fits(self) -> Self:
        if self.trainer.strategy != "fsdp":
            return self
        if not self.can_shard:
            stage = type(self).model_fields["stage"].default
            raise ValueError(
                f"trainer.strategy: expected auto or ddp for stage {stage}, got fsdp, which is for stages "
                f"{' and '.join(GENERATORS)}; use auto"
            )
        if self.training.compile:
            raise ValueError(
                "training.compile: expected false with trainer.strategy fsdp, which gathers weights while the network "
                "runs, got true; set it to false, or use ddp"
            )
        return self
