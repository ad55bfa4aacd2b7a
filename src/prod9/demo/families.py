"""What sets the demo's two families apart: the stages they train and what else they can add.

Names alone: this answers ``--help`` and bad options without torch.
"""

from dataclasses import dataclass

from prod9.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """One way from nothing to brains.

    autoencoder, generator: the two stages that every demo has, names of shipped configs, run folders and
    blocks of metrics. control: the stage that ``control`` trains; its config names the generator at
    ``inputs.<generator_key>``. minutes: what the first two take on two cores, from scratch and then from packaged
    weights, by the name of the block of metrics; ``--budget`` scales them in proportion. starters: stages whose weights
    are packaged. extra_stages: what ``--stages`` can add. folder: where a run goes by default. quick_folder: where a
    smoke run goes, which must not stand in the way of a real one.
    """

    autoencoder: str
    generator: str
    control: str
    generator_key: str
    minutes: dict[str, float]
    starters: tuple[str, ...]
    extra_stages: tuple[str, ...]
    folder: str
    quick_folder: str


FAMILIES = {
    "maskgit": Family(
        autoencoder="stage1",
        generator="stage2_label",
        control="stage3",
        generator_key="transformer",
        minutes={"from_scratch": 12.0, "starter": 6.0},
        starters=("stage1", "stage2_label", "stage2", "stage2_refiner"),
        extra_stages=("translation", "control"),
        folder="outputs/demo",
        quick_folder="outputs/demo-quick",
    ),
    "maisi": Family(
        autoencoder="maisi_vae",
        generator="maisi_diffusion",
        control="maisi_controlnet",
        generator_key="diffusion",
        minutes={"maisi_from_scratch": 25.0, "maisi": 20.0},
        starters=("maisi_vae",),
        extra_stages=("control",),
        folder="outputs/demo-maisi",
        quick_folder="outputs/demo-maisi-quick",
    ),
}

VARIANTS = tuple(variant for family in FAMILIES.values() for variant in family.minutes)
"""Names of blocks of metrics and of folders of runs."""


def family_named(name: str) -> Family:
    """Return the family of ``FAMILIES`` called ``name``. Raises ConfigError for any other."""
    if name not in FAMILIES:
        raise ConfigError(f"--family: expected one of {', '.join(FAMILIES)}, got {name!r}.")
    return FAMILIES[name]
