"""Options that several of these commands take, in groups: one dataclass each."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from prod9.cli.front.spacing import SPACING, checked_spacing, spacing_of
from prod9.cli.shared import DebugOption, DeviceOption, JsonOption, checked_seed
from prod9.errors import ConfigError

Grid = tuple[int, int, int]
ModalityOption = Annotated[
    list[str] | None,
    typer.Option("--modality", metavar="NAME", help="Compare only this one; repeatable. [all]"),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="List files that cannot be read and go on without them.")
]
GridOption = Annotated[
    Grid | None,
    typer.Option("--grid", metavar="H W D", help="Voxels of a volume. [those of the generated volumes]"),
]
ReplicatesOption = Annotated[
    int, typer.Option("--replicates", min=0, help="Bootstrap samples for an interval; 0 for none.")
]
OutputDirOption = Annotated[
    Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Where tables and JSON go.")
]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a command computes, and how it prints."""

    device: DeviceOption = "auto"
    as_json: JsonOption = False
    debug: DebugOption = False


@dataclass(frozen=True, kw_only=True)
class JudgedOptions:
    """Which volumes are compared."""

    modality: ModalityOption = None
    layout: Annotated[
        str, typer.Option("--layout", metavar="NAME", help="Layout of real folders, if it is not detected.")
    ] = "auto"
    label_scheme: Annotated[
        str,
        typer.Option(
            "--label-scheme", metavar="NAME|TABLE", help="Meaning of the labels in real segmentations."
        ),
    ] = "auto"
    skip_bad: SkipBadOption = False
    seed: Annotated[int, typer.Option("--seed", min=0, callback=checked_seed, help="Seed of all draws.")] = 0

    def settings(self) -> dict[str, Any]:
        """Return the fields of :class:`~prod9.evaluation.settings.SetSettings` that were given."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        if "spacing" in given:
            given["spacing"] = spacing_of(given["spacing"])
        modalities = given.pop("modality")
        return given | ({"modalities": tuple(modalities)} if modalities else {})


@dataclass(frozen=True, kw_only=True)
class SetOptions(JudgedOptions):
    """Which volumes are compared, and how they are read."""

    spacing: Annotated[
        str | None,
        typer.Option(
            "--spacing",
            metavar=SPACING,
            callback=checked_spacing,
            help="Resample all volumes to this voxel size in mm.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainedOptions:
    """Real patients that segmenters are trained and tested on."""

    split: Annotated[
        Path | None,
        typer.Option(
            "--split",
            metavar="FILE",
            help="A run's split.json: train on its train, test on its test patients.",
        ),
    ] = None
    heldout: Annotated[
        Path | None, typer.Option("--heldout", metavar="DIR", help="Real patients to test on instead.")
    ] = None
    training_steps: Annotated[
        int, typer.Option("--training-steps", min=1, help="Steps of training of each network.")
    ] = 400

    def settings(self) -> dict[str, Any]:
        """Return the fields of :class:`~prod9.evaluation.utility.TrainedSettings`; ConfigError for both folders."""
        if self.split is not None and self.heldout is not None:
            raise ConfigError("expected --split FILE or --heldout DIR, got both; leave one out")
        return {
            "split": None if self.split is None else str(self.split),
            "heldout": None if self.heldout is None else str(self.heldout),
            "steps": self.training_steps,
        }


@dataclass(frozen=True, kw_only=True)
class ExtractorOptions:
    """Networks that volumes are compared with."""

    extractor: Annotated[
        list[str] | None,
        typer.Option(
            "--extractor",
            "-x",
            metavar="NAME",
            help="random, autoencoder, classifier or file:PATH; repeatable. [random]",
        ),
    ] = None
    autoencoder: Annotated[
        str | None,
        typer.Option(
            "--autoencoder",
            metavar="NAME|PATH",
            help="Run, checkpoint or export of that extractor.",
        ),
    ] = None
    classifier: Annotated[
        str | None,
        typer.Option(
            "--classifier", metavar="FILE", help="A classifier.safetensors of an earlier evaluation."
        ),
    ] = None
    classifier_steps: Annotated[
        int, typer.Option("--classifier-steps", min=1, help="Training steps of the classifier.")
    ] = 400
    inception_score: Annotated[
        bool, typer.Option("--inception-score", help="Needs a classifier of the same labels.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class AuditedOptions:
    """Whose volumes an audit compares with."""

    train: Annotated[
        Path | None, typer.Option("--train", metavar="DIR", help="Folder of the training cases.")
    ] = None
    heldout: Annotated[
        Path | None,
        typer.Option("--heldout", metavar="DIR", help="Folder of cases that the model never saw."),
    ] = None
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="RUN", help="Instead of both: a run, whose data and split name the patients."
        ),
    ] = None
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="With --run: where its data lie now.")
    ] = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` as Typer wants it: one option per field of each parameter that is a dataclass."""
    parameters: list[Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += inspect.signature(groups[parameter.name]).parameters.values()
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # pyrefly: ignore[missing-attribute]
    return run
