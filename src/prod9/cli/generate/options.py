"""Options of ``prod9 generate`` that several commands have, in groups: a command takes a group as one argument."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from prod9.cli.parts.engine import Engine, generate_on
from prod9.cli.parts.option import PartOption
from prod9.cli.shared import (
    CheckOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    OutputsOption,
    OverwriteOption,
    PrintConfigOption,
    SetOption,
)
from prod9.cli.stage import ModelOption, OptionalConfigOption
from prod9.errors import ConfigError
from prod9.system.machine import expand

if TYPE_CHECKING:
    from prod9.pipelines.detail import DetailChoice

LabelsOption = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="NAME|all", help="What to generate, e.g. T1ce; repeatable. [all]"),
]
SegsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--seg", metavar="FILE|DIR", help="Segmentation to follow, or a folder of them; repeatable."
    ),
]
LabelSchemeOption = Annotated[
    str,
    typer.Option(
        "--label-scheme",
        metavar="NAME|TABLE",
        help="Meaning of the values of --seg, e.g. brats2021 or `1=2, 2=1`.",
    ),
]
ControlStrengthOption = Annotated[
    float | None,
    typer.Option("--control-strength", help="Factor of what control adds; 0 gives the base's volume."),
]
ResampleOption = Annotated[
    bool,
    typer.Option("--resample", help="Bring registered volumes of other voxels to those of the first one."),
]
RefineOption = Annotated[
    bool, typer.Option("--refine/--no-refine", help="Correct translations with a refiner, if there is one.")
]
SampleSeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Volume k is drawn with this seed plus k.")
]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which trained model works, with which config, and where."""

    model: ModelOption = None
    config: OptionalConfigOption = None
    overrides: SetOption = None
    device: DeviceOption = "auto"
    print_config: PrintConfigOption = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the results go, and how the command answers."""

    output_dir: OutputsOption
    overwrite: OverwriteOption = False
    part: PartOption = None
    check: CheckOption = False
    as_json: JsonOption = False
    debug: DebugOption = False


@dataclass(frozen=True, kw_only=True)
class Samples:
    """How many samples there are, and of which seeds."""

    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=1, help="Volumes per label, segmentation or patient.")
    ] = 1
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Volumes sampled together.")] = 1
    seed: SampleSeedOption = 0


NO_DETAIL = "--no-detail"
NoDetailOption = Annotated[
    bool,
    typer.Option(NO_DETAIL, help="Leave volumes as soft, and free of noise, as they are decoded or refined."),
]
DetailStepsOption = Annotated[
    int | None,
    typer.Option("--detail-steps", min=1, help="Steps of the detail flow; more are slower. [as trained]"),
]
NoiseOption = Annotated[
    str,
    typer.Option(
        "--noise",
        metavar="LEVEL|scans",
        help="Noise of the result, in intensities of 0 to 1; 0: none; scans: as in the training scans.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class DetailUse:
    """How volumes are sharpened."""

    no_detail: NoDetailOption = False
    detail_steps: DetailStepsOption = None
    noise: NoiseOption = "scans"

    @property
    def path(self) -> str | None:
        """The detail flow that was named; None for none."""
        return None

    def check(self, *paths: str | None) -> None:
        """Refuse (ConfigError) options that contradict each other, and a level that is no number.

        paths: the detail flows that were named.
        """
        named = any(path is not None for path in paths)
        given = {
            "--detail": named,
            "--detail-steps": self.detail_steps is not None,
            "--noise": self._level() is not None,
        }
        extra = [name for name, there in given.items() if there]
        if self.no_detail and extra:
            raise ConfigError(f"expected {NO_DETAIL} or {extra[0]}, got both; leave one out")

    def choice(self) -> "DetailChoice | None":
        """Return what was chosen; None for no detail flow."""
        if self.no_detail:
            return None
        from prod9.pipelines.detail import DetailChoice

        return DetailChoice(path=self.path, steps=self.detail_steps, noise=self._level())

    def _level(self) -> float | None:
        """Return the level of noise; None for that of scans."""
        if self.noise == "scans":
            return None
        try:
            return float(self.noise)
        except ValueError as error:
            raise ConfigError(
                f"--noise: expected a level such as 0.02, 0 for none, or scans, got {self.noise!r}; choose one of these"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Detail(DetailUse):
    """Which detail flow sharpens volumes, and how."""

    detail: Annotated[
        str | None,
        typer.Option(
            "--detail",
            metavar="NAME|PATH",
            help="Detail flow that sharpens volumes. [RUN_detail beside the model or its autoencoder]",
        ),
    ] = None

    @property
    def path(self) -> str | None:
        """The detail flow that was named."""
        return self.detail


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler from a file, and guidance by a weaker network; None leaves a value of the config as it is."""

    sampler_file: Annotated[
        Path | None,
        typer.Option(
            "--sampler",
            metavar="FILE",
            help="YAML with a sampler section, as `prod9 tune sampler` writes it.",
        ),
    ] = None
    autoguidance_scale: Annotated[
        float | None,
        typer.Option(
            "--autoguidance",
            metavar="SCALE",
            help="Guidance away from a weaker model (--weak-model); 0 for none.",
        ),
    ] = None
    weak_model: Annotated[
        str | None,
        typer.Option(
            "--weak-model",
            metavar="PATH|auto",
            help="Run, checkpoint or export of that model; auto: the run's own earliest checkpoint.",
        ),
    ] = None

    def changes(self) -> list[tuple[str, Any]]:
        """Return the changes to a config that the options ask for; those of single options win over the file's."""
        given = asdict(self)
        changes = _of_file(given.pop("sampler_file"))
        return changes + [(f"sampler.{name}", value) for name, value in given.items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class TokenSampler(Sampling):
    """How tokens are drawn; None leaves a value of the config as it is."""

    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the sampler.")] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Temperature at which tokens are drawn.")
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Draw from the likeliest tokens that hold this probability; 1 for all."),
    ] = None
    order: Annotated[
        str | None,
        typer.Option("--order", metavar="confidence|halton|random", help="Which tokens are drawn first."),
    ] = None
    remasking: Annotated[
        float | None, typer.Option("--remasking", help="Share of the drawn tokens to draw again; 0 for none.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Sampler(TokenSampler):
    """How tokens are drawn or a flow is integrated, with guidance."""

    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", help="Classifier-free guidance; 0 for none.")
    ] = None
    guidance_schedule: Annotated[
        str | None,
        typer.Option("--guidance-schedule", metavar="constant|linear|cosine", help="How guidance grows."),
    ] = None
    solver: Annotated[
        str | None, typer.Option("--solver", metavar="euler|heun", help="MAISI: how the flow is integrated.")
    ] = None


def _of_file(file: Path | None) -> list[tuple[str, Any]]:
    """Return the changes to a config that a file with a ``sampler`` section asks for; ConfigError for any other."""
    if file is None:
        return []
    from prod9.config.load import merge_config

    if not expand(file).is_file():
        raise ConfigError(
            f"--sampler: expected a YAML file with a sampler section, got no file {file}; check the path"
        )
    values = merge_config(expand(file))
    section = values.get("sampler")
    if set(values) != {"sampler"} or not isinstance(section, dict):
        raise ConfigError(
            f"{file}: expected a `sampler` section and nothing else, got {', '.join(map(str, values)) or 'nothing'}; "
            "name a sampler.yaml of `prod9 tune sampler`, or use --config for a whole config"
        )
    return [(f"sampler.{name}", value) for name, value in section.items()]


def require_seg(label_scheme: str, default: str, seg: object) -> None:
    """Refuse (ConfigError) a ``--label-scheme`` other than the ``default`` without the ``--seg`` that it is about."""
    if label_scheme != default and not seg:
        raise ConfigError(f"--label-scheme: expected --seg with it, got {label_scheme} alone; leave it out")


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` as Typer takes it: each field of a dataclass among its arguments is an option of its own.

    A command with an :class:`~prod9.cli.parts.engine.Engine` is handed to that engine where one is asked for.
    """
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        given = [(parameter.name, hints[parameter.name], parameter.default)]
        if (group := groups.get(parameter.name)) is not None:
            inner = get_type_hints(group, include_extras=True)
            given = [
                (
                    one.name,
                    inner[one.name],
                    inspect.Parameter.empty if one.default is MISSING else one.default,
                )
                for one in fields(group)
            ]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, hint, default in given
        ]

    @wraps(command)
    def run(**values: Any) -> None:
        given = dict(values)
        made = {
            name: group(**{one.name: values.pop(one.name) for one in fields(group)})
            for name, group in groups.items()
        }
        engine = next((group for group in made.values() if isinstance(group, Engine)), Engine())
        if engine.engine is not None and not given.get("check") and not given.get("print_config"):
            generate_on(run, given, engine)
            return
        command(**made, **values)

    run.__signature__ = inspect.Signature(parameters)  # pyrefly: ignore[missing-attribute]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run
