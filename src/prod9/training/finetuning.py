"""Fine-tuning: a trained model, and every stage that it builds on, trained further on other patients.

The folder that comes out is a run of the model, so that ``--model FOLDER`` takes it::

    FOLDER                the model
    FOLDER/autoencoder    what it builds on, named by its key in ``inputs``; that may hold folders of this kind too
    FOLDER/refiner        the refiner of a translator
    FOLDER/finetune.json  what was asked
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from prod9.config.load import Overrides, config_from_dict, load_config, with_steps
from prod9.config.schema import RunConfig
from prod9.data.cases import Case
from prod9.data.layouts.find import find_cases
from prod9.data.splits import divide
from prod9.errors import ConfigError
from prod9.json_files import read_object, write_json
from prod9.models.checkpoint_manager import CheckpointManager, Opened
from prod9.models.checkpoint_opening import open_refiner
from prod9.models.exporting import REFINER
from prod9.models.named.packaged import packaged_at
from prod9.models.run_folder import holds_run
from prod9.stages import STAGES
from prod9.training.run import RunResult, train

RECORD = "finetune.json"
_SPLIT = {"train": 0.8, "val": 0.2, "test": 0.0}
_STEPS = 300
"""Steps of a stage whose weights are not packaged with prod9."""
_SLOWER = 0.25
"""Its learning rate, as a share of that of its first training."""
_TRANSLATIONS = 140
"""Least number of translations to train a refiner on, half as many as in its first training, if the scans allow it."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is fine-tuned on what.

    Attributes:
        model: the name that the user gave, for the record.
        data: folder of the patients, or a list of them.
        folder: of the result.
        steps: of every stage; None for the defaults.
        factor: on the default steps.
        seed: of the division of the patients and of training.
        changes: to the config of every stage.
    """

    model: str
    data: Path
    folder: Path
    steps: int | None = None
    factor: float = 1.0
    seed: int = 0
    changes: Overrides = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One stage: its config, and the checkpoint whose weights it starts from."""

    config: RunConfig
    weights: Path
    sha256: str

    @property
    def title(self) -> str:
        """What it trains, in words."""
        return STAGES[self.config.stage].title


def train_further(
    config: RunConfig, weights: Path | None, *, name: str, say: Say, device: str = "auto"
) -> RunResult:
    """Train a stage from ``weights``, or from scratch, or go on where it was interrupted.

    Args:
        config: of the run.
        weights: a run, checkpoint or export to start from; None for random weights.
        name: of the stage, for the message.
        say: prints a line.
        device: as for :func:`prod9.training.run.train`.
    """
    doing = "Training" if weights is None else "Fine-tuning"
    say(f"{doing} {name}: {config.training.max_steps} steps")
    return train(config, resume="auto", init_from=weights, device=device)


class TrainingStage(Protocol):
    """A stage to train: what it is called, its config, and the weights that it starts from; None for random ones."""

    @property
    def title(self) -> str:
        """In words."""
        ...

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        ...

    @property
    def weights(self) -> Path | None:
        """A run, checkpoint or export."""
        ...


def train_stages(stages: Sequence[TrainingStage], *, say: Say, device: str = "auto") -> dict[str, RunResult]:
    """Train what is not trained yet of ``stages``, and return the result of each by the folder of its run.

    say: prints a line. device: as for :func:`prod9.training.run.train`.
    """
    results = {}
    for number, stage in enumerate(stages, 1):
        name = f"{number} of {len(stages)}, {stage.title}"
        results[stage.config.output_dir] = train_further(
            stage.config, stage.weights, name=name, say=say, device=device
        )
    return results


def plan_finetuning(asked: Asked) -> list[Step]:
    """Return the stages to train, in their order.

    Raises CheckpointError for a model that cannot be read, ConfigError for one that is not fine-tuned by itself.
    """
    opened = CheckpointManager.open(asked.model)
    stage = STAGES[opened.header["stage"]]
    if stage.corrects:
        raise ConfigError(
            f"--model: expected a model that makes or encodes volumes, got {asked.model}, a "
            f"{stage.title.lower()}; name the model that it corrects, whose refiner is trained along."
        )
    steps = list(_chain(opened, asked.folder, asked))
    training = _training_cases(steps[-1].config)
    refiner = open_refiner(opened) if opened.header["stage"] == "transformer" else None
    if refiner is not None:
        step = _step(refiner, asked.folder / REFINER, {"transformer": asked.folder}, asked)
        steps.append(_with_enough_translations(step, len(training)))
    segmented = any(case.seg is not None for case in training)
    return steps if segmented else [_without_regions(step) for step in steps]


def finetune(asked: Asked, steps: Sequence[Step], *, say: Say, device: str = "auto") -> dict[str, RunResult]:
    """Do what is not done yet of ``steps``, and return the result of each by the folder of its run.

    Raises ConfigError where the folder holds other runs or results of other settings, and what training raises.

    Args:
        asked: what is fine-tuned on what.
        steps: as :func:`plan_finetuning` returned them.
        say: prints a line.
        device: as for :func:`prod9.training.run.train`.
    """
    record = require_free(asked, steps)
    if record is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
        write_json(asked.folder / RECORD, record)
    return train_stages(steps, say=say, device=device)


def _chain(opened: Opened, folder: Path, asked: Asked) -> Iterator[Step]:
    """Yield the stages below ``opened``, then itself."""
    key, inputs = STAGES[opened.header["stage"]].base_key, {}
    if key is not None:
        inputs = {key: folder / key}
        yield from _chain(CheckpointManager.open_recorded(opened, key), folder / key, asked)
    yield _step(opened, folder, inputs, asked)


def _step(opened: Opened, folder: Path, inputs: Mapping[str, Path], asked: Asked) -> Step:
    if opened.header["config"]["data"].get("kind", "brats") != "brats":
        raise ConfigError(
            f"--model: expected a model of patients' scans, got {opened.path}, which knows MedMNIST3D; train it with "
            "--init-from instead."
        )
    packaged = packaged_at(opened.path)
    changes: list[Any] = [
        ("data.root", str(asked.data)),
        ("data.split", _SPLIT | {"seed": asked.seed, "file": None}),
        ("data.cache", "disk"),  # every stage reads the same volumes
        ("data.cache_dir", str(asked.folder / "cache")),
        ("data.store_dir", None),
        ("output_dir", str(folder)),
        ("seed", asked.seed),
        ("training.validate_start", True),  # so that no stage ends worse than it began
        ("inputs", {key: str(path) for key, path in inputs.items()}) if inputs else ("seed", asked.seed),
    ]
    if packaged is not None:
        config = load_config(f"demo/starter/{packaged.stage}", overrides=[*changes, *asked.changes])
    else:
        recorded = opened.header["config"]
        changes += _gentler(recorded["training"])
        config = config_from_dict(recorded, source=str(opened.path), overrides=[*changes, *asked.changes])
    steps = asked.steps or config.training.max_steps * asked.factor
    return Step(config=with_steps(config, steps), weights=opened.path, sha256=opened.sha256)


def _gentler(training: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the changes to the ``training`` section of a first training that make it a short second one."""
    schedule = {"kind": "cosine", "warmup_steps": _STEPS // 10, "final_fraction": 0.02}
    averaging = {} if training.get("ema") is None else {"decay": 0.99, "start_step": _STEPS // 10}
    return [
        ("training.max_steps", _STEPS),
        ("training.validate_every_steps", _STEPS),
        ("training.learning_rate", _SLOWER * training["learning_rate"]),
        ("training.lr_schedule", schedule),
        *((f"training.ema.{key}", value) for key, value in averaging.items()),
    ]


def _training_cases(config: RunConfig) -> list[Case]:
    """Return the cases of the training patients; DataError where the patients cannot be used."""
    data: Any = config.data
    cases = find_cases(Path(data.root), **data.reading)
    return divide(cases, data.split.kwargs()).select(cases, "train")


def _with_enough_translations(step: Step, num_cases: int) -> Step:
    """Return ``step``, of a refiner, with more translations of each scan where there are few training cases.

    With one translation of each scan, it sees every target from a single set of sources.
    """
    config: Any = step.config
    modalities = len(config.data.modalities)
    sets_of_sources = 2 ** (modalities - 1) - 1
    wanted = math.ceil(_TRANSLATIONS / (modalities * num_cases))
    section = config.translations
    more = max(section.per_target, min(wanted, sets_of_sources))
    changed = section.model_copy(update={"per_target": more})
    return replace(step, config=config.model_copy(update={"translations": changed}))


def _without_regions(step: Step) -> Step:
    """Return ``step`` with all tissue weighed alike, since nothing says where lesions are."""
    loss: Any = step.config.loss
    plain = {"region_weight": 1.0, "class_weights": ()}
    changes = {name: value for name, value in plain.items() if getattr(loss, name, value) != value}
    if not changes:
        return step
    alike = loss.model_copy(update=changes)
    return replace(step, config=step.config.model_copy(update={"loss": alike}))


def require_free(asked: Asked, steps: Sequence[Step]) -> dict[str, Any] | None:
    """Return the record to write into the folder, or None where it is there.

    Raises ConfigError where the folder holds other runs or results of other settings.
    """
    record = {
        "model": str(asked.model),
        "data": str(asked.data.absolute()),
        "seed": asked.seed,
        "steps": [step.config.training.max_steps for step in steps],
        "weights": [step.sha256 for step in steps],
        "changes": [list(change) if isinstance(change, tuple) else change for change in asked.changes],
    }
    path = asked.folder / RECORD
    if path.exists():
        found = read_object(path)
        changed = [key for key, value in record.items() if found.get(key) != value]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"{path}: expected {key} {found.get(key)}, with which it was begun, got {record[key]}; choose another "
                "--output-dir."
            )
        return None
    if holds_run(asked.folder) or any(holds_run(Path(step.config.output_dir)) for step in steps):
        raise ConfigError(
            f"--output-dir: expected a new folder, or one that `prod9 finetune` made, got {asked.folder}, which holds "
            "another run; choose another name."
        )
    return record
