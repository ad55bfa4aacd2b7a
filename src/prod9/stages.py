"""The stages of training, one record each: every question of the kind "which stage is this?" is answered here.

Imports nothing but the standard library and prod9's errors, so that every module can import it.

Example:
    >>> from prod9.stages import STAGES, first_stage_of, stages_of
    >>> [stage.name for stage in stages_of("maisi")]
    ['maisi_vae', 'maisi_diffusion', 'maisi_detail', 'maisi_controlnet']
    >>> STAGES["transformer"].command, first_stage_of(STAGES["transformer"]).name
    ('prod9-train-transformer', 'autoencoder')
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from prod9.errors import ConfigError

Family = Literal["maskgit", "maisi"]
FAMILIES: tuple[Family, ...] = get_args(Family)
_LABEL = "prod9 generate label -m {run} -l {label} -n 4 -o {run}/volumes"
_TRANSLATE = "prod9 generate translate -m {run} -p {data} -t {label} -o {run}/translations"
_MASKS = "prod9 generate masks -m {run} --training {data} -n 16 -o {run}/masks"
LABEL_MAPS = "label_maps"
"""Among the uses of a stage: of a run on label maps."""
_CONTROL = "prod9 generate control -m {run} --seg {data} -l {label} -o {run}/steered"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of training.

    Attributes:
        name: the value of ``stage`` in a configuration and in the header of a checkpoint.
        family: the family of models that it belongs to.
        number: 1 for autoencoders, 2 for generators and what corrects them, 3 for control networks.
        command: the program that trains it.
        title: what a trained network of this stage is called in cards and messages.
        weights: name of its network, which is the first part of its weights' names in a checkpoint.
        bases: the stages that it builds on, by the key of ``inputs`` that names them. The first is required.
        configs: names of its configs in the demo, and of those that ``prod9 plan`` writes.
        is_planned: whether ``prod9 plan`` writes them.
        corrects: whether its network makes no volumes of its own but corrects those of others.
        uses: a command that uses a trained run, by ``model.kind``, ``LABEL_MAPS`` or ``""`` for any, with ``{run}``,
            ``{data}`` (the folder of the patients), ``{label}`` (the last modality) and ``{base}`` (what it builds on)
            to fill in.
    """

    name: str
    family: Family
    number: int
    command: str
    title: str
    weights: str
    bases: Mapping[str, str] = field(default_factory=dict)
    configs: tuple[str, ...] = ()
    is_planned: bool = True
    corrects: bool = False
    uses: Mapping[str, str] = field(default_factory=dict)

    def use(self, kind: str = "") -> str:
        """Return the command that uses a trained run whose model is of ``kind``; empty where there is none."""
        return self.uses.get(kind, self.uses.get("", ""))

    @property
    def prefix(self) -> str:
        """What the names of its network's weights begin with in a checkpoint."""
        return f"{self.weights}."

    @property
    def base_key(self) -> str | None:
        """The key of ``inputs`` that must be given; None for a stage 1."""
        return next(iter(self.bases), None)


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
            configs=("stage1",),
            uses={"": "prod9 infer {data} -m {run} -o {run}/reconstructed", LABEL_MAPS: ""},
        ),
        Stage(
            name="transformer",
            family="maskgit",
            number=2,
            command="prod9-train-transformer",
            title="MaskGiT transformer",
            weights="decoder",
            bases={"autoencoder": "autoencoder"},
            configs=("stage2_label", "stage2"),
            uses={"label_conditional": _LABEL, LABEL_MAPS: _MASKS, "": _TRANSLATE},
        ),
        Stage(
            name="refiner",
            family="maskgit",
            number=2,
            command="prod9-train-transformer",
            title="Refiner of MaskGiT translations",
            weights="refiner",
            bases={"transformer": "transformer"},
            configs=("stage2_refiner",),
            is_planned=False,
            corrects=True,
            uses={
                "": "prod9 generate translate -m {base} --refiner {run} -p {data} -t {label} -o {run}/translations"
            },
        ),
        Stage(
            name="detail",
            family="maskgit",
            number=2,
            command="prod9-train-transformer",
            title="Detail flow of MaskGiT volumes",
            weights="detail",
            bases={"autoencoder": "autoencoder"},
            configs=("stage1_detail",),
            is_planned=False,
            corrects=True,
        ),
        Stage(
            name="translation_detail",
            family="maskgit",
            number=2,
            command="prod9-train-transformer",
            title="Detail flow of MaskGiT translations",
            weights="detail",
            bases={"transformer": "transformer"},
            configs=("stage2_detail",),
            is_planned=False,
            corrects=True,
            uses={
                "": "prod9 generate translate -m {base} --detail {run} -p {data} -t {label} -o {run}/translations"
            },
        ),
        Stage(
            name="maskgit_controlnet",
            family="maskgit",
            number=3,
            command="prod9-train-maskgit-controlnet",
            title="MaskGiT control network",
            weights="controlnet",
            bases={"transformer": "transformer"},
            configs=("stage3",),
            uses={"": _CONTROL},
        ),
        Stage(
            name="maisi_vae",
            family="maisi",
            number=1,
            command="prod9-train-maisi-vae",
            title="MAISI autoencoder",
            weights="autoencoder",
            configs=("maisi_vae",),
            uses={"": "prod9 infer {data} -m {run} -o {run}/reconstructed"},
        ),
        Stage(
            name="maisi_diffusion",
            family="maisi",
            number=2,
            command="prod9-train-maisi-diffusion",
            title="MAISI rectified flow",
            weights="diffusion",
            bases={"autoencoder": "maisi_vae"},
            configs=("maisi_diffusion",),
            uses={"": _LABEL},
        ),
        Stage(
            name="maisi_detail",
            family="maisi",
            number=2,
            command="prod9-train-maisi-diffusion",
            title="Detail flow of MAISI volumes",
            weights="detail",
            bases={"autoencoder": "maisi_vae"},
            configs=("maisi_vae_detail",),
            is_planned=False,
            corrects=True,
        ),
        Stage(
            name="maisi_controlnet",
            family="maisi",
            number=3,
            command="prod9-train-maisi-controlnet",
            title="MAISI control network",
            weights="controlnet",
            bases={"diffusion": "maisi_diffusion"},
            configs=("maisi_controlnet",),
            uses={"": _CONTROL},
        ),
    )
}
"""All stages, by name."""

AUTOENCODERS = tuple(name for name, stage in STAGES.items() if stage.number == 1)
"""Stage 1 of each family."""
GENERATORS = tuple(name for name, stage in STAGES.items() if stage.number == 2 and not stage.corrects)
"""Stage 2 of each family, which trains on what an autoencoder encodes."""
CORRECTORS = tuple(name for name, stage in STAGES.items() if stage.corrects)
"""Those of stage 2 that train on volumes."""
CONTROLS = tuple(name for name, stage in STAGES.items() if stage.number == 3)
"""Stage 3 of each family."""


def stage_named(name: str) -> Stage:
    """Return the stage called ``name``; ConfigError for any other."""
    if name not in STAGES:
        raise ConfigError(f"stage: expected {' or '.join(STAGES)}, got {name!r}; correct the name.")
    return STAGES[name]


def stages_of(family: Family) -> list[Stage]:
    """Return the stages of ``family`` in the order in which they are trained."""
    return [stage for stage in STAGES.values() if stage.family == family]


def stages_on(stage: Stage) -> list[Stage]:
    """Return the stages that build on ``stage``: generators and control networks first, then what corrects them."""
    found = [one for one in STAGES.values() if stage.name in one.bases.values()]
    return sorted(found, key=lambda one: one.corrects)


def first_stage_of(stage: Stage) -> Stage:
    """Return the stage 1 below ``stage``; itself for a stage 1."""
    while stage.bases:
        stage = STAGES[next(iter(stage.bases.values()))]
    return stage
