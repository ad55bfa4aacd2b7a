"""The two families of the demo: the stages that each trains, how long they take, and what each can add.

Names alone: ``--help`` and bad options are answered without torch.
"""

from dataclasses import dataclass

from prod9.errors import ConfigError
from prod9.stages import Family as FamilyName
from prod9.stages import Stage, stages_of


@dataclass(frozen=True, kw_only=True)
class Family:
    """One way from nothing to generated brains.

    Attributes:
        name: of the family.
        minutes: what the first two stages take on two cores, from scratch and then from packaged weights, by the name
            of the block of metrics; ``--budget`` scales them in proportion.
        starters: configs whose weights are packaged.
        extra_stages: what ``--stages`` can add.
        folder: where a run goes by default.
        quick_folder: where a smoke run goes, so that it does not take the place of a real one.
    """

    name: FamilyName
    minutes: dict[str, float]
    starters: tuple[str, ...]
    extra_stages: tuple[str, ...]
    folder: str
    quick_folder: str

    @property
    def autoencoder(self) -> str:
        """Stage 1: the name of its config, its run folder and its block of metrics."""
        return self._stage(1).configs[0]

    @property
    def generator(self) -> str:
        """Stage 2, conditioned on the label; likewise."""
        return self._stage(2).configs[0]

    @property
    def control(self) -> str:
        """Stage 3, which ``control`` trains; likewise."""
        return self._stage(3).configs[0]

    @property
    def generator_key(self) -> str:
        """The key of ``inputs`` that names the generator in the config of stage 3."""
        return str(self._stage(3).base_key)

    def _stage(self, number: int) -> Stage:
        return next(stage for stage in stages_of(self.name) if stage.number == number)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="maskgit",
            minutes={"from_scratch": 12.0, "starter": 5.0},
            starters=("stage1", "stage2_label", "stage2", "stage2_refiner"),
            extra_stages=("translation", "control", "masks"),
            folder="outputs/demo",
            quick_folder="outputs/demo-quick",
        ),
        Family(
            name="maisi",
            minutes={"maisi_from_scratch": 25.0, "maisi": 20.0},
            starters=("maisi_vae",),
            extra_stages=("control",),
            folder="outputs/demo-maisi",
            quick_folder="outputs/demo-maisi-quick",
        ),
    )
}

VARIANTS = tuple(variant for family in FAMILIES.values() for variant in family.minutes)
"""Names of blocks of metrics and of folders of runs."""


def family_named(name: str) -> Family:
    """Return the family of ``FAMILIES`` called ``name``. Raises ConfigError for any other."""
    for family in FAMILIES.values():
        if family.name == name:
            return family
    raise ConfigError(f"--family: expected one of {', '.join(FAMILIES)}, got {name!r}.")
