"""How much the demo does: which cohort, which configs, how many steps.

Amounts are steps and patients, never seconds, so that a slow machine ends with the same models as a fast
one; times in minutes are those of a two-core laptop.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prod9.config.load import load_config, of_class, with_steps
from prod9.config.schema import AutoencoderConfig, MaisiVAEConfig, RunConfig
from prod9.demo.families import Family, family_named
from prod9.errors import ConfigError
from prod9.models.named.packaged import PACKAGED


@dataclass(frozen=True)
class DemoPlan:
    """Everything that decides what a demo run makes.

    Attributes:
        output_dir: where everything goes.
        num_patients: size of the simulated cohort.
        spacing_mm: voxel size of the simulated scans.
        volumes_per_modality: generated and scored for each modality.
        judge_steps: training steps of the classifier and of the lesion detector that score them.
        seed: of the cohort, training and sampling.
        budget: factor on the number of steps and patients.
        config_folder: of the shipped configs, named by the family's stages.
        from_scratch: start from random weights, not from the packaged ones.
        stages: which of the family's ``extra_stages`` come after the first two.
        family: a name of ``FAMILIES``.
        radiological: show the patient's right on the left in pictures and report.
    """

    output_dir: Path
    num_patients: int = 96
    spacing_mm: float = 3.75
    volumes_per_modality: int = 16
    judge_steps: int = 300
    seed: int = 0
    budget: float = 1.0
    config_folder: str = "demo"
    from_scratch: bool = False
    stages: tuple[str, ...] = ()
    family: str = "maskgit"
    radiological: bool = False

    @property
    def names(self) -> Family:
        """The family of models."""
        return family_named(self.family)

    @property
    def variant(self) -> str:
        """Name of the block of metrics and of the folder of the runs."""
        from_scratch, started = self.names.minutes
        return from_scratch if self.from_scratch else started

    @property
    def run_dir(self) -> Path:
        """Where the stages and the generated volumes are kept."""
        return self.output_dir / self.variant

    @property
    def data_dir(self) -> Path:
        """The simulated cohort."""
        return self.output_dir / "data"

    def stage1(self) -> AutoencoderConfig | MaisiVAEConfig:
        """Return the configuration of the family's autoencoder."""
        return of_class(self._load(self.names.autoencoder), (AutoencoderConfig, MaisiVAEConfig))

    def stage2(self, autoencoder: Path) -> RunConfig:
        """Return the configuration of the label-conditional generator on the run or checkpoint ``autoencoder``."""
        return self._load(self.names.generator, ("inputs.autoencoder", str(autoencoder)))

    def in_context(self, autoencoder: Path) -> RunConfig:
        """Return the configuration of stage 2b on the same stage 1."""
        return self._load("stage2", ("inputs.autoencoder", str(autoencoder)))

    def refiner(self, transformer: Path) -> RunConfig:
        """Return the configuration of the refiner of what the stage-2b run ``transformer`` makes."""
        return self._load("stage2_refiner", ("inputs.transformer", str(transformer)))

    def masks_stage1(self) -> RunConfig:
        """Return the configuration of the autoencoder of label maps."""
        return self._load("masks_stage1")

    def masks_stage2(self, autoencoder: Path) -> RunConfig:
        """Return the configuration of what draws masks, on the run ``autoencoder`` of label maps."""
        return self._load("masks_stage2", ("inputs.autoencoder", str(autoencoder)))

    def stage3(self, generator: Path) -> RunConfig:
        """Return the configuration of the family's control network on the run ``generator`` of its stage 2."""
        base = (f"inputs.{self.names.generator_key}", str(generator))
        return self._load(self.names.control, base, ("data.store_dir", str(generator / "store")))

    def initial_weights(self, stage: str) -> Path | None:
        """Return the packaged weights that ``stage`` starts from; None if it starts from scratch."""
        return None if self.from_scratch or stage not in self.names.starters else starter_weights(stage)

    def _load(self, stage: str, *extra: tuple[str, Any]) -> RunConfig:
        changes = [
            ("data.root", str(self.data_dir)),
            ("output_dir", str(self.run_dir / stage)),
            ("seed", self.seed),
            *extra,
        ]
        started = self.initial_weights(stage) is not None
        folder = f"{self.config_folder}/starter" if started else self.config_folder
        config = load_config(f"{folder}/{stage}", overrides=changes)
        return with_steps(config, config.training.max_steps * self.budget)


def starter_weights(stage: str) -> Path:
    """Return the export folder of the packaged weights of ``stage``, one of its family's ``starters``.

    They were trained on simulated patients of another seed than any demo's, by the commands in ``weights/README.md``,
    and exported with ``prod9 export --half``.
    """
    return PACKAGED[stage].folder


def make_plan(
    output_dir: Path,
    *,
    quick: bool = False,
    from_scratch: bool = False,
    budget_minutes: float | None = None,
    num_patients: int | None = None,
    seed: int = 0,
    stages: str = "",
    family: str = "maskgit",
    radiological: bool = False,
) -> DemoPlan:
    """Return the plan for these options; raises ConfigError for those that exclude each other.

    Args:
        output_dir: where everything goes.
        quick: a smoke run, which has a size of its own and always starts from scratch.
        from_scratch: start from random weights.
        budget_minutes: scales steps and, above the nominal minutes, patients.
        num_patients: size of the cohort, whatever the budget.
        seed: of the cohort, training and sampling.
        stages: as ``--stages``.
        family: a name of ``FAMILIES``.
        radiological: show the patient's right on the left in pictures and report.
    """
    if quick and budget_minutes is not None:
        raise ConfigError(
            "--budget: expected none with --quick, which has a fixed size, got one; use one of the two."
        )
    plan = DemoPlan(
        output_dir=output_dir,
        seed=seed,
        from_scratch=from_scratch or quick,
        stages=parse_stages(stages, family),
        family=family,
        radiological=radiological,
    )
    if quick:
        plan = replace(
            plan,
            num_patients=14,
            spacing_mm=6.0,
            volumes_per_modality=2,
            judge_steps=40,
            config_folder="demo/quick",
        )
    if budget_minutes is not None:
        factor = budget_minutes / plan.names.minutes[plan.variant]
        plan = replace(plan, budget=factor, num_patients=round(plan.num_patients * max(1.0, factor)))
    if num_patients is not None:
        plan = replace(plan, num_patients=num_patients)
    return plan


def parse_stages(text: str, family: str = "maskgit") -> tuple[str, ...]:
    """Read ``all`` or names separated by commas. Raises ConfigError for names unknown to ``family``."""
    known = family_named(family).extra_stages
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if wanted == ["all"]:
        return known
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(
            f"--stages: expected all or names among {', '.join(known)}, got {', '.join(unknown)}."
        )
    return tuple(name for name in known if name in wanted)


def parse_minutes(text: str) -> float:
    """Read ``90s``, ``60m`` or ``1.5h`` as minutes. Raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", text)
    if match is None:
        raise ConfigError(f"--budget: expected a time such as 60m, 1.5h or 600s, got {text!r}.")
    return float(match[1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[match[2]]
