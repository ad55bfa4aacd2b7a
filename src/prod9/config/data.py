"""The ``data`` section of every stage: files of cases, or MedMNIST3D.

Imported by :mod:`prod9.config.schema`; import the sections from there.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from prod9.config.types import Count, Fraction, Names, Place, PositiveInt, Section, Spacing, Triple
from prod9.files import is_plain_name
from prod9.modalities import DEFAULT_LABEL_MAP, SEG, known_as

_MAX_NAME = 64


def name_problem(name: str) -> str:
    """Return why ``name`` cannot be part of a file's name; empty if it can.

    Labels and modalities become parts of file names. A name with a dot at its beginning would be hidden, and might be
    taken for a temporary file.
    """
    if not name or len(name.encode(errors="replace")) > _MAX_NAME:
        return f"has not between 1 and {_MAX_NAME} bytes"
    if not is_plain_name(name) or not name.isprintable():
        return "holds slashes, control characters or a way out of the folder"
    return "begins or ends in a dot or a space" if name[0] in ". " or name[-1] in ". " else ""


class SplitConfig(Section):
    """How patients are divided; all time points of a patient stay on one side."""

    train: Fraction = Field(default=0.8, description="Share of patients to train on.")
    val: Fraction = Field(default=0.2, description="Share of patients for model selection.")
    test: Fraction = Field(default=0.0, description="Share of patients that only `test` and `evaluate` see.")
    seed: Count = Field(default=0, description="Seed of the shuffle.")
    file: str | None = Field(default=None, description="A split file to read instead of shuffling.")

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(
                f"train + val + test: expected a sum of 1, got {total:g}; adjust one of the three"
            )
        return self


class IntensityConfig(Section):
    """How raw intensities become [0, 1]."""

    mode: Literal["percentile", "range"] = Field(
        default="percentile",
        description="`percentile`: robust, per volume, over the foreground; `range`: fixed bounds.",
    )
    lower: float = Field(default=0.0, description="Lower percentile, or lower raw intensity.")
    upper: float = Field(default=99.5, description="Upper percentile, or upper raw intensity.")

    @model_validator(mode="after")
    def _bounds_have_an_order(self) -> Self:
        is_share = self.mode == "percentile"
        if not self.lower < self.upper or (is_share and not (self.lower >= 0 and self.upper <= 100)):
            wanted = "percentiles from 0 to 100, " if is_share else ""
            raise ValueError(
                f"lower and upper: expected {wanted}the lower one below the upper one, got {self.lower:g} and "
                f"{self.upper:g}; correct them, or the mode"
            )
        return self


class AugmentConfig(Section):
    """Training-time augmentation of the stages that read volumes; every probability is per sample.

    A refiner and a detail flow mirror, rotate and zoom all volumes of a patient alike, and change the intensities of
    each source by itself. Stages that read tokens or latents do not use it; they have ``store_flips``.
    """

    flip_prob: Fraction = Field(default=0.5, description="Left-right flip.")
    bias_field_prob: Fraction = Field(default=0.0, description="Smooth multiplicative bias field.")
    gamma_prob: Fraction = Field(default=0.0, description="Random gamma between 0.7 and 1.5.")
    scale_prob: Fraction = Field(default=0.0, description="Random intensity gain between 0.9 and 1.1.")
    affine_prob: Fraction = Field(
        default=0.0, description="Small random rotation about (0.1 rad) and zoom along (10%) each axis."
    )


class VolumesSection(Section):
    """What all dataset families have in common: place, grid, crops, loaders and caches."""

    root: Place = Field(description="Folder with the cases, or a CSV or JSON list of them.")
    grid: Triple = Field(
        default=(144, 192, 144), description="Voxels of a whole volume: pad or centre-crop to this."
    )
    crop_size: Triple | None = Field(
        default=None, description="Stage 1 and refiner: random training crops; null for whole volumes."
    )
    whole_volume_fraction: Fraction = Field(
        default=0.4, description="Stage 1: last share of the steps that trains on whole volumes at batch 1."
    )
    augment: AugmentConfig = Field(
        default=AugmentConfig(), description="Augmentation: stage 1, refiners and detail flows."
    )
    max_val_volumes: PositiveInt | None = Field(
        default=None,
        description="Volumes per validation, drawn once with the split's seed; null for all.",
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
                f"crop_size: expected at most data.grid {list(self.grid)} on each axis, got {list(self.crop_size)}; "
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
        description="Folder layout; `auto` detects it from the names. BraTS 2024 uses those of 2023: set `brats2024`.",
    )  # fmt: skip
    label_scheme: str = Field(
        default="auto",
        description="What the values of segmentations mean: a scheme (`brats2015`, `brats2018` to `brats2021`, "
        "`brats2023`, `brats2024`, `msd_task01`, `canonical`, `whole_tumor`, `as_is`), a table such as "
        "`1=2, 2=1, 3=3`, or `auto`: by layout.",
    )
    modalities: Names = Field(
        default=("T1", "T1ce", "T2", "FLAIR"),
        description="Modalities to use; `[seg]`: segmentations within the outline of the brain, as label maps.",
    )
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
    def reading(self) -> dict[str, Any]:
        """What decides which cases a folder holds, as keywords of ``find_cases``."""
        names = ("layout", "label_scheme", "modalities", "skip_incomplete")
        return {name: getattr(self, name) for name in names}

    @property
    def images_per_case(self) -> int:
        """Number of co-registered images per case."""
        return len(self.modalities)

    @property
    def shows_labels(self) -> bool:
        """Whether the volumes are label maps, not scans."""
        return self.modalities == (SEG,)

    @model_validator(mode="before")
    @classmethod
    def _spell_modalities(cls, values: Any) -> Any:
        """Put the names that people use for modalities, such as t1c and T2w, into those of ``label_map``."""
        given = values.get("modalities") if isinstance(values, dict) else None
        if given in ([SEG], (SEG,)) and "label_map" not in values:
            values = values | {"label_map": {SEG: 0}}
        labels = values.get("label_map", DEFAULT_LABEL_MAP) if given else None
        if not isinstance(given, list | tuple) or not isinstance(labels, Mapping):
            return values
        known = [name for name in labels if isinstance(name, str)]
        return values | {
            "modalities": [known_as(one, known) if isinstance(one, str) else one for one in given]
        }

    @model_validator(mode="after")
    def _label_maps_stand_alone(self) -> Self:
        if SEG in self.modalities and not self.shows_labels:
            raise ValueError(
                f"modalities: expected scans, or [{SEG}] alone for label maps, got {', '.join(self.modalities)}; "
                f"leave out {SEG}, or the scans"
            )
        changing = [name for name, value in self.augment if name != "flip_prob" and value > 0]
        if self.shows_labels and changing:
            raise ValueError(
                f"augment: expected only flip_prob for label maps, whose values are classes, got "
                f"{', '.join(changing)}; set them to 0"
            )
        return self

    @model_validator(mode="after")
    def _labels_cover_modalities(self) -> Self:
        unusable = [m for m in dict.fromkeys((*self.modalities, *self.label_map)) if name_problem(m)]
        if unusable:
            raise ValueError(
                "modalities and label_map: expected names that can be part of a file name, got "
                f"{', '.join(map(repr, unusable))}; leave out slashes, control characters and dots at the beginning, "
                "and keep them short"
            )
        folded = [m.casefold() for m in self.modalities]
        twice = next((m for m in self.modalities if folded.count(m.casefold()) > 1), None)
        if twice is not None:
            raise ValueError(f"modalities: expected each once, in any case, got {twice} twice; leave one out")
        missing = [m for m in self.modalities if m not in self.label_map]
        if missing:
            raise ValueError(
                f"label_map: expected a label for each modality, got none for {', '.join(missing)}; add one each"
            )
        labels = {name: self.label_map[name] for name in self.modalities}
        if len(set(labels.values())) < len(labels) or min(labels.values()) < 0:
            raise ValueError(
                f"label_map: expected a label of 0 or more of its own for each modality, got {labels}; two of one "
                "label would be learnt as one"
            )
        return self


class MedMNIST3DDataConfig(VolumesSection):
    """One MedMNIST3D file: small volumes with one class label each, divided by its makers.

    There is one channel and no mask. What other families configure follows from the file here: its classes take the
    place of modalities, and intensities range from 0 to 255.
    """

    images_per_case: ClassVar[int] = 1
    shows_labels: ClassVar[bool] = False
    split: ClassVar[SplitConfig] = SplitConfig()
    spacing: ClassVar[None] = None
    intensity: ClassVar[IntensityConfig] = IntensityConfig(mode="range", lower=0.0, upper=255.0)
    cache: ClassVar[Literal["memory"]] = "memory"
    cache_dir: ClassVar[None] = None

    kind: Literal["medmnist3d"] = Field(default="medmnist3d", description="Dataset family.")
    name: Literal[
        "organmnist3d",
        "nodulemnist3d",
        "adrenalmnist3d",
        "fracturemnist3d",
        "vesselmnist3d",
        "synapsemnist3d",
    ] = Field(default="organmnist3d", description="Which of the six; adrenal and vessel are binary shapes.")
    size: Literal[28, 64] = Field(default=28, description="Voxels per side, as published.")
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
    def modalities(self) -> tuple[str, ...]:
        """The class names, in order of their labels."""
        return MEDMNIST3D_CLASSES[self.name]

    @model_validator(mode="after")
    def _grid_holds_the_samples(self) -> Self:
        if min(self.grid) < self.size:
            fit = [-(-self.size // 16) * 16] * 3
            raise ValueError(
                f"grid: expected at least {self.size} on each axis, got {list(self.grid)}; use {fit}"
            )
        return self

    @model_validator(mode="after")
    def _left_stays_left(self) -> Self:
        if self.name == "organmnist3d" and (self.augment.flip_prob > 0 or self.store_flips):
            raise ValueError(
                "augment.flip_prob and store_flips: expected 0 and false for organmnist3d, where a mirror exchanges "
                f"left and right organs, got {self.augment.flip_prob:g} and {str(self.store_flips).lower()}; set them"
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


DEFAULT_KIND = "brats"
"""The dataset family of a section without a ``kind``, as before there were two."""


def _data_kind(value: Any) -> str:
    """Return the dataset family of a data section."""
    is_raw = isinstance(value, dict)
    return str(value.get("kind", DEFAULT_KIND) if is_raw else getattr(value, "kind", DEFAULT_KIND))


AnyDataConfig = Annotated[
    Annotated[DataConfig, Tag("brats")] | Annotated[MedMNIST3DDataConfig, Tag("medmnist3d")],
    Discriminator(_data_kind),
]
