"""The models that make patients, trained on one's own: four from the packaged weights on, and a control network.

The folder of the models holds one run of each stage, named as in the demo::

    FOLDER/stage1           the autoencoder
    FOLDER/stage2_label     makes the first modality; its split.json divides the patients for all
    FOLDER/stage2           makes each other modality from those made before
    FOLDER/stage2_refiner   corrects what that makes
    FOLDER/stage3           makes the first modality follow a segmentation; from random weights
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prod9.config.load import load_config, with_steps
from prod9.config.schema import RunConfig
from prod9.errors import ConfigError
from prod9.models.named.packaged import PACKAGED

MINUTES = 24.0
"""That all of it takes on two cores with 67 training patients."""
TEST_SHARE, MOST_TEST = 0.15, 0.4
"""Share of the patients that are held out for the test, and the most that may be."""


@dataclass(frozen=True)
class PatientModels:
    """The runs in ``folder`` that ``generate patients`` needs."""

    folder: Path

    @property
    def label(self) -> Path:
        """The label-conditional model."""
        return self.folder / "stage2_label"

    @property
    def in_context(self) -> Path:
        """The model that translates."""
        return self.folder / "stage2"

    @property
    def control(self) -> Path:
        """The control network of the label-conditional model."""
        return self.folder / "stage3"

    @property
    def split(self) -> Path:
        """How the patients are divided."""
        return self.label / "split.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientModelStep:
    """One stage: what it is called, its config, and the packaged weights that it starts from, if any."""

    title: str
    config: RunConfig
    weights: Path | None


def share_of_test(data: Path, num_patients: int, least_tested: int) -> float:
    """Return the share of the patients that is held out for the test, of whom at least ``least_tested`` are needed.

    Raises ConfigError where too few patients would be left to train on. data: folder of the patients, for the message.
    """
    share = max(TEST_SHARE, (least_tested + 0.5) / num_patients)  # half a patient more: shares are rounded
    if share > MOST_TEST:
        least = math.ceil((least_tested + 0.5) / MOST_TEST)
        raise ConfigError(
            f"{data}: expected at least {least} patients, so that {least_tested} can be held out for the audit, got "
            f"{num_patients}; add patients, or audit less sharply with a larger --false-alarms"
        )
    return share


def plan_patient_models(
    data: Path, folder: Path, *, num_patients: int, least_tested: int, factor: float, seed: int
) -> list[PatientModelStep]:
    """Return the stages in the order in which they are trained.

    Raises ConfigError where too few patients would be left to train on.

    Args:
        data: folder of the patients, with segmentations.
        folder: of the models.
        num_patients: in ``data``.
        least_tested: patients that the test needs.
        factor: on the number of steps.
        seed: of the division of the patients and of training.
    """
    share = share_of_test(data, num_patients, least_tested)
    models = PatientModels(folder)
    common: list[tuple[str, Any]] = [
        ("data.root", str(data)),
        ("data.split", {"train": 0.85 - share, "val": 0.15, "test": share, "seed": seed, "file": None}),
        ("data.cache", "disk"),  # every stage reads the same volumes
        ("data.cache_dir", str(folder / "cache")),
        ("seed", seed),
    ]
    encoded = ("inputs.autoencoder", str(folder / "stage1"))
    stages: Sequence[tuple[str, str, list[tuple[str, Any]]]] = (
        ("autoencoder", "stage1", []),
        ("label-conditional model", "stage2_label", [encoded]),
        ("model that translates", "stage2", [encoded]),
        ("refiner", "stage2_refiner", [("inputs.transformer", str(models.in_context))]),
        (
            "control network",
            "stage3",
            [("inputs.transformer", str(models.label)), ("data.store_dir", str(models.label / "store"))],
        ),
    )
    steps = []
    for title, name, changes in stages:
        packaged = PACKAGED.get(name)
        config = load_config(
            f"demo/{name}" if packaged is None else f"demo/starter/{name}",
            overrides=[*common, ("output_dir", str(folder / name)), *changes],
        )
        steps.append(
            PatientModelStep(
                title=title,
                config=with_steps(config, config.training.max_steps * factor),
                weights=None if packaged is None else packaged.folder,
            )
        )
    return steps
