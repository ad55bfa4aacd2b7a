"""The stages of training, one record each: every question of the kind "which stage is this?" is answered here.

Imports nothing but the standard library and prod9's errors, so that anything may ask.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prod9.errors import ConfigError

Family = Literal["maskgit", "maisi"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of training.

    Attributes:
        name: the value of ``stage`` in a configuration and in the header of a checkpoint.
        family: the family of models that it belongs to.
        number: 1 for autoencoders, 2 for what generates, 3 for what steers it.
        command: the program that trains it.
        title: what a trained network of it is called in cards and messages.
        weights: prefix of its network's weights in a checkpoint.
        bases: the earlier stages that it builds on, by the key of ``inputs`` that names them. The first is required.
    """

    name: str
    family: Family
    number: int
    command: str
    title: str
    weights: str
    bases: Mapping[str, str] = field(default_factory=dict)


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="autoencoder",
            family="maskgit",
            number=1,
            command="prod9-train-autoencoder",
            title="FSQ autoencoder",
            weights="autoencoder",
        ),
        Stage(
            name="transformer",
            family="maskgit",
            number=2,
            command="prod9-train-transformer",
            title="MaskGiT transformer",
            weights="decoder",
            bases={"autoencoder": "autoencoder"},
        ),
        Stage(
            name="refiner",
            family="maskgit",
            number=2,
            command="prod9-train-transformer",
            title="Refiner of MaskGiT translations",
            weights="refiner",
            bases={"transformer": "transformer"},
        ),
        Stage(
            name="maskgit_controlnet",
            family="maskgit",
            number=3,
            command="prod9-train-maskgit-controlnet",
            title="MaskGiT control network",
            weights="controlnet",
            bases={"transformer": "transformer"},
        ),
        Stage(
            name="maisi_vae",
            family="maisi",
            number=1,
            command="prod9-train-maisi-vae",
            title="MAISI autoencoder",
            weights="autoencoder",
        ),
        Stage(
            name="maisi_diffusion",
            family="maisi",
            number=2,
            command="prod9-train-maisi-diffusion",
            title="MAISI rectified flow",
            weights="diffusion",
            bases={"autoencoder": "maisi_vae"},
        ),
        Stage(
            name="maisi_controlnet",
            family="maisi",
            number=3,
            command="prod9-train-maisi-controlnet",
            title="MAISI control network",
            weights="controlnet",
            bases={"diffusion": "maisi_diffusion"},
        ),
    )
}
"""All stages, by name."""


def stage_named(name: str) -> Stage:
    """Return the stage called ``name``; ConfigError for any other."""
    if name not in STAGES:
        raise ConfigError(f"stage: expected {' or '.join(STAGES)}, got {name!r}; correct the name.")
    return STAGES[name]


def first_stage_of(stage: Stage) -> Stage:
    """Return the stage 1 below ``stage``; itself for a stage 1."""
    while stage.bases:
        stage = STAGES[next(iter(stage.bases.values()))]
    return stage
