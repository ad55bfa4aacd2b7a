"""The sections that every stage shares: data, optimisation, hardware, callbacks, inference windows.

:mod:`prod9.config.schema` adds what differs and the roots; import the sections from there.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from prod9.files import is_plain_name

_MAX_NAME = 64


def name_problem(name: str) -> str:
    """Return what keeps ``name`` from being part of a file's name; empty if nothing does.

    Labels, modalities and the like become names of files. One that begins with a dot would be hidden, and might be
    taken for a temporary file.
    """
    if not name or len(name.encode(errors="replace")) > _MAX_NAME:
        return f"has not between 1 and {_MAX_NAME} bytes"
    if not is_plain_name(name) or not name.isprintable():
        return "holds slashes, control characters or a way out of the folder"
    return "begins or ends in a dot or a space" if name[0] in ". " or name[-1] in ". " else ""


Triple = Annotated[tuple[int, int, int], Field(strict=False)]
Spacing = Annotated[tuple[float, float, float], Field(strict=False)]
Range = Annotated[tuple[float, float], Field(strict=False)]
Ints = Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
Bools = Annotated[tuple[bool, ...], Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, types are exact, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def kwargs(self, *exclude: str) -> dict[str, Any]:
        """Return the fields as constructor keywords, without ``kind`` and the names in ``exclude``."""
        return {k: getattr(self, k) for k in type(self).model_fields if k not in {"kind", *exclude}}


# -- data -----------------------------------------------------------------------------------------


class SplitConfig(Section):
    """How patients are divided; all time points of a patient stay on one side."""

    train: Fraction = Field(default=0.8, description="Share of patients to train on.")
    val: Fraction = Field(default=0.2, description="Share of patients for model selection.")
    test: Fraction = Field(default=0.0, description="Share of patients that only `test` and `evaluate` see.")
    seed: Count = Field(default=0, description="Seed of the shuffle.")
    file: str | None = Field(default=None, description="A split file to read instead of shuffling.")

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> "SplitConfig":
        total = self.train + self.val + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train + val + test must be 1, got {total:g}; adjust one of the three")
        return self


class IntensityConfig(Section):
    """How raw intensities become [0, 1]."""

    mode: Literal["percentile", "range"] = Field(
        default="percentile",
        description="`percentile`: robust, per volume, over the foreground; `range`: fixed bounds.",
    )
    lower: float = Field(default=0.0, description="Lower percentile, or lower raw intensity.")
    upper: float = Field(default=99.5, description="Upper percentile, or upper raw intensity.")


class AugmentConfig(Section):
    """Training-time augmentation; every probability is per sample."""

    flip_prob: Fraction = Field(default=0.5, description="Left-right flip.")
    bias_field_prob: Fraction = Field(default=0.0, description="Smooth multiplicative bias field.")
    gamma_prob: Fraction = Field(default=0.0, description="Random gamma between 0.7 and 1.5.")
    scale_prob: Fraction = Field(default=0.0, description="Random intensity gain between 0.9 and 1.1.")
    affine_prob: Fraction = Field(default=0.0, description="Small random rotation (0.1 rad) and zoom (10%).")


class VolumesSection(Section):
    """What every dataset family has: where it is, the grid, crops, loaders and caches."""

    root: str = Field(description="Folder with the cases, or a CSV or JSON list of them.")
    grid: Triple = Field(
        default=(144, 192, 144), description="Voxels of a whole volume: pad or centre-crop to this."
    )
    crop_size: Triple | None = Field(
        default=None, description="Stage 1 and refiner: random training crops; null for whole volumes."
    )
    whole_volume_fraction: Fraction = Field(
        default=0.4, description="Stage 1: last share of the steps that trains on whole volumes at batch 1."
    )
    augment: AugmentConfig = Field(default=AugmentConfig(), description="Augmentation.")
    max_val_volumes: PositiveInt | None = Field(
        default=None,
        description="Volumes that a validation looks at, drawn once by the split's seed; null for all.",
    )
    batch_size: PositiveInt = Field(default=1, description="Samples per step and device.")
    num_workers: Count = Field(default=0, description="Loader processes.")
    store_dir: str | None = Field(
        default=None, description="Folder of the token store; default `<output_dir>/store`."
    )
    store_flips: bool = Field(
        default=True, description="Stage 2: also encode the left-right mirror of each training volume."
    )

    @model_validator(mode="after")
    def _crops_fit_the_grid(self) -> Self:
        if self.crop_size is not None and any(c > g for c, g in zip(self.crop_size, self.grid, strict=True)):
            raise ValueError(
                f"crop_size must be at most data.grid {list(self.grid)} on each axis, got {list(self.crop_size)}; "
                "use a smaller crop, or null for whole volumes"
            )
        return self


class DataConfig(VolumesSection):
    """Cases of several modalities as files: BraTS of any year, the Decathlon, nnU-Net, BIDS, lists."""

    kind: Literal["brats"] = Field(default="brats", description="Dataset family.")
    layout: Literal[
        "auto", "brats2015", "brats2018", "brats2019", "brats2020", "brats2021", "brats2023", "brats2024",
        "msd", "nnunet", "bids", "datalist",
    ] = Field(
        default="auto",
        description="Folder layout; `auto` detects it from the names (2024 has those of 2023: name it).",
    )  # fmt: skip
    label_scheme: str = Field(
        default="auto",
        description="What the values of segmentations mean: a scheme (`brats2015`, `brats2018` to `brats2021`, "
        "`brats2023`, `brats2024`, `msd_task01`, `canonical`, `whole_tumor`, `as_is`), a table such as "
        "`1=2, 2=1, 3=3`, or `auto`: by layout.",
    )
    modalities: Names = Field(default=("T1", "T1ce", "T2", "FLAIR"), description="Modalities to use.")
    skip_incomplete: bool = Field(
        default=False,
        description="Leave out cases that lack a modality, and log which; false refuses them.",
    )
    label_map: dict[str, int] = Field(
        default={"T1": 0, "T1ce": 1, "T2": 2, "FLAIR": 3}, description="Class label of each modality."
    )
    split: SplitConfig = Field(default=SplitConfig(), description="Division of the patients.")
    spacing: Spacing | None = Field(
        default=None, description="Resample to this spacing in mm; null keeps the file's."
    )
    intensity: IntensityConfig = Field(default=IntensityConfig(), description="Intensity scaling.")
    cache: Literal["none", "memory", "disk"] = Field(
        default="memory", description="Where preprocessed volumes are kept."
    )
    cache_dir: str | None = Field(default=None, description="Folder of the disk cache; never inside `root`.")

    @property
    def images_per_case(self) -> int:
        """How many co-registered images a case has."""
        return len(self.modalities)

    @model_validator(mode="after")
    def _labels_cover_modalities(self) -> "DataConfig":
        unusable = [m for m in dict.fromkeys((*self.modalities, *self.label_map)) if name_problem(m)]
        if unusable:
            raise ValueError(
                f"expected names that files can be called after, got {', '.join(map(repr, unusable))} in modalities or "
                "label_map; leave out slashes, control characters and dots at the beginning, and keep them short"
            )
        missing = [m for m in self.modalities if m not in self.label_map]
        if missing:
            raise ValueError(f"label_map has no label for {', '.join(missing)}; add one each")
        return self


class MedMNIST3DDataConfig(VolumesSection):
    """One MedMNIST3D file: small volumes with one class label each, divided by its makers.

    There is one channel and no mask. What other families are told by keys follows from the file here: the classes
    stand where those have modalities, and intensities are eighths of a byte's 0 to 255.
    """

    kind: Literal["medmnist3d"] = Field(default="medmnist3d", description="Dataset family.")
    name: Literal[
        "organmnist3d",
        "nodulemnist3d",
        "adrenalmnist3d",
        "fracturemnist3d",
        "vesselmnist3d",
        "synapsemnist3d",
    ] = Field(default="organmnist3d", description="Which of the six; adrenal and vessel are binary shapes.")
    size: Literal[28, 64] = Field(default=28, description="Voxels a side, as published.")
    download: bool = Field(default=False, description="Fetch the file into `root` if it is not there.")
    grid: Triple = Field(
        default=(32, 32, 32), description="Voxels of a sample: the published ones are padded."
    )

    first_label: Count = Field(
        default=0, description="Label of the first class; 1 for stage 2 of MAISI, where 0 means unknown."
    )

    @property
    def label_map(self) -> dict[str, int]:
        """Class label of each class name."""
        return {name: label for label, name in enumerate(MEDMNIST3D_CLASSES[self.name], self.first_label)}

    @property
    def images_per_case(self) -> int:
        """One: there is no second modality."""
        return 1

    @property
    def modalities(self) -> tuple[str, ...]:
        """The class names, in order of their labels."""
        return MEDMNIST3D_CLASSES[self.name]

    @property
    def split(self) -> SplitConfig:
        """The seed of what is drawn from the file's own parts."""
        return SplitConfig()

    @property
    def spacing(self) -> None:
        """None: the files say no voxel size."""
        return None

    @property
    def intensity(self) -> IntensityConfig:
        """A byte's range."""
        return IntensityConfig(mode="range", lower=0.0, upper=255.0)

    @property
    def cache(self) -> Literal["memory"]:
        """The file fits into memory."""
        return "memory"

    @property
    def cache_dir(self) -> None:
        """None: nothing is cached on disk."""
        return None

    @model_validator(mode="after")
    def _grid_holds_the_samples(self) -> "MedMNIST3DDataConfig":
        if min(self.grid) < self.size:
            fit = [-(-self.size // 16) * 16] * 3
            raise ValueError(
                f"grid must be at least {self.size} on each axis, got {list(self.grid)}; use {fit}"
            )
        return self

    @model_validator(mode="after")
    def _left_stays_left(self) -> "MedMNIST3DDataConfig":
        if self.name == "organmnist3d" and (self.augment.flip_prob > 0 or self.store_flips):
            raise ValueError(
                "organmnist3d tells left from right organs, which a mirror exchanges; set augment.flip_prob: 0 and "
                "store_flips: false"
            )
        return self


MEDMNIST3D_CLASSES: dict[str, tuple[str, ...]] = {
    "organmnist3d": (
        "liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right",
        "lung-left", "spleen", "pancreas",
    ),
    "nodulemnist3d": ("benign", "malignant"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "fracturemnist3d": ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "synapsemnist3d": ("inhibitory synapse", "excitatory synapse"),
}  # fmt: skip
"""Class names of each set, in order of their labels."""


def _data_kind(value: Any) -> str:
    """Return the family of a data section; one that does not say is of files, as it was before there were two."""
    return str(value.get("kind", "brats") if isinstance(value, dict) else getattr(value, "kind", "brats"))


AnyDataConfig = Annotated[
    Annotated[DataConfig, Tag("brats")] | Annotated[MedMNIST3DDataConfig, Tag("medmnist3d")],
    Discriminator(_data_kind),
]


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
    log_every_steps: PositiveInt = Field(default=20, description="Steps between logged values.")
    max_skipped_steps: PositiveInt = Field(
        default=10, description="Stop after so many steps with non-finite loss in a row."
    )
    channels_last: bool = Field(default=True, description="channels_last_3d memory format for convolutions.")
    compile: bool = Field(default=False, description="torch.compile the network.")


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


class CheckpointConfig(Section):
    """Which states are kept."""

    monitor: str | None = Field(
        default=None, description="Metric that picks the best; null: the stage's default."
    )
    mode: Literal["min", "max"] | None = Field(
        default=None, description="Direction; null: the stage's default."
    )
    save_top_k: PositiveInt = Field(default=1, description="Best checkpoints kept.")
    every_steps: PositiveInt | None = Field(
        default=None, description="Save `last` so often; null: after validation."
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


class RunSection(Section):
    """What every root holds.

    data_kinds: the dataset families that a stage can be trained on. can_shard: whether ``trainer.strategy: fsdp``
    knows its network.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("brats",)
    can_shard: ClassVar[bool] = False

    output_dir: str = Field(description="Everything this run writes goes here.")
    seed: Count = Field(default=0, description="Seed of all randomness in training.")
    data: AnyDataConfig = Field(description="Data.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="Optimisation.")
    trainer: TrainerConfig = Field(default=TrainerConfig(), description="Hardware and logging.")
    callbacks: CallbacksConfig = Field(default=CallbacksConfig(), description="Callbacks.")
    sliding_window: SlidingWindowSection = Field(
        default=SlidingWindowSection(), description="Inference windows."
    )

    @property
    def store_dir(self) -> Path:
        """Where what an earlier stage made of the volumes is kept: ``data.store_dir``, or beside the run's outputs."""
        return Path(self.data.store_dir or Path(self.output_dir) / "store")

    @model_validator(mode="after")
    def _stage_takes_the_data(self) -> Self:
        if self.data.kind not in self.data_kinds:
            raise ValueError(
                f"data.kind must be {' or '.join(self.data_kinds)} in this stage, got {self.data.kind}; see "
                "`prod9 configs list` for those that train on it"
            )
        return self

    @model_validator(mode="after")
    def _sharding_fits(self) -> Self:
        if self.trainer.strategy != "fsdp":
            return self
        if not self.can_shard:
            stage = type(self).model_fields["stage"].default
            raise ValueError(
                f"trainer.strategy must be auto or ddp for stage {stage}, got fsdp, which is for stages transformer "
                "and maisi_diffusion; use auto"
            )
        if self.training.compile:
            raise ValueError(
                "training.compile must be false with trainer.strategy fsdp, which gathers weights while the network "
                "runs, got true; set it to false, or use ddp"
            )
        return self
