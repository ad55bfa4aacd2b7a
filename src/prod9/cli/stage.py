"""``train``, ``validate`` and ``test``: the same three commands for every stage.

The module of a stage adds its own (``infer`` or ``generate``)::

    app = new_app("…")
    add_run_commands(app, "autoencoder")
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.front.after import tell_after_training, tell_next, use_of
from prod9.cli.front.before import say_memory, say_what_begins
from prod9.cli.front.completion import config_names
from prod9.cli.front.times import parse_time as parse_time
from prod9.cli.parsing import App, ResumeCommand
from prod9.cli.shared import (
    CheckOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    OutputDirOption,
    PrintConfigOption,
    SeedOption,
    SetOption,
)
from prod9.errors import ConfigError
from prod9.stages import STAGES

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Source

NeededConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="NAME_OR_PATH",
        autocompletion=config_names,
        help="A YAML file, or the name of a shipped config (`prod9 configs list`).",
    ),
]
OptionalConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="NAME_OR_PATH",
        autocompletion=config_names,
        help="A YAML file or shipped name; without it, the config recorded in --model.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="A run, checkpoint or export folder, a packaged model such as demo/label (`prod9 weights list`), or "
        "hf:ORG/MODEL@REVISION; without it, the run of --config.",
    ),
]
AutoencoderOption = Annotated[
    str | None,
    typer.Option(
        "--autoencoder",
        metavar="NAME|PATH",
        help="Where stage 1 is now, if it has moved; or one tuned from it with freeze_encoder.",
    ),
]
ResumeOption = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="[auto|PATH]",
        help="Go on from a checkpoint; alone or with `auto`, from the last one of the run, if there is any.",
    ),
]
InitFromOption = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="NAME|PATH",
        help="Start from the weights of this run, checkpoint or named model (fine-tune).",
    ),
]


MaxTimeOption = Annotated[
    str | None,
    typer.Option(
        "--max-time", metavar="TIME", help="Save and stop after so long, e.g. 90m, 11h30m or 1-12:00:00."
    ),
]
CalibrateOption = Annotated[
    bool,
    typer.Option(
        "--calibrate/--no-calibrate", help="Measure a few steps to tell the time of a run; else estimate it."
    ),
]


def load_for_model(
    stage: str | Sequence[str],
    config: str | None,
    model: str | None,
    *,
    overrides: list[str] | None = None,
    output_dir: str | None = None,
    seed: int | None = None,
) -> "tuple[RunConfig, Source]":
    """Return the config and the model of a command that needs a trained model.

    With ``--config`` alone, the model is the run in its ``output_dir``; with ``--model`` alone, the config is the one
    recorded in it. A model that was opened for that is returned opened, so that it is read and hashed once.

    Args:
        stage: the stages that the command can use.
        config: as ``--config``.
        model: as ``--model``.
        overrides: as ``--set``.
        output_dir: as ``--output-dir``.
        seed: as ``--seed``.
    """
    if config is not None:
        loaded = shared.load(config, stage=stage, overrides=overrides, output_dir=output_dir, seed=seed)
        return loaded, Path(model or loaded.output_dir)
    if model is None:
        raise ConfigError("expected --model NAME|PATH or --config NAME_OR_PATH, got neither")
    from prod9.config.load import config_from_dict
    from prod9.models.checkpoint_manager import CheckpointManager

    opened = CheckpointManager.open(model, stage=stage)
    changes = shared.config_changes(overrides, output_dir=output_dir, seed=seed)
    return config_from_dict(opened.header["config"], source=str(opened.path), overrides=changes), opened


def add_run_commands(app: App, *stages: str) -> None:
    """Add ``train``, ``validate`` and ``test`` of ``stages`` to ``app``; config or model decide which stage it is."""
    first = STAGES[stages[0]]
    program, name = ("prod9" if len(stages) == len(STAGES) else first.command), first.configs[0]

    @app.command(cls=ResumeCommand, example=f"{program} train --config demo/{name}")
    def train(
        config: NeededConfigOption = None,
        overrides: SetOption = None,
        output_dir: OutputDirOption = None,
        device: DeviceOption = "auto",
        seed: SeedOption = None,
        resume: ResumeOption = None,
        init_from: InitFromOption = None,
        max_time: MaxTimeOption = None,
        check: CheckOption = False,
        calibrate: CalibrateOption = True,
        print_config: PrintConfigOption = False,
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Train, validate and save as the config says; `--resume` goes on where a run stopped."""
        began = time.monotonic()
        if config is None:
            raise _no_config(f"{program} train --config demo/{name}")
        run_config = shared.load(config, stage=stages, overrides=overrides, output_dir=output_dir, seed=seed)
        ends = None if max_time is None else began + parse_time(max_time)
        if resume is not None and init_from is not None:
            raise ConfigError(
                "--resume and --init-from: expected one of them, since the first goes on with a run and the other "
                "starts a new one, got both; leave one out"
            )
        if not calibrate and not check:
            raise ConfigError(
                "--no-calibrate: expected --check with it, which tells the time of a run, got none; add it, or leave "
                "the option out"
            )
        if print_config:
            shared.print_config(run_config)
        elif check:
            report_check(
                run_config, device=device, as_json=as_json, resume=resume, init_from=init_from, calibrate=calibrate
            )  # fmt: skip
        else:
            _train(
                run_config,
                given=config,
                resume=resume,
                init_from=init_from,
                device=device,
                ends=ends,
                as_json=as_json,
            )

    for what, text in (
        ("validate", "Measure a trained model on the validation patients."),
        ("test", "Measure a trained model on the test patients, which nothing else sees."),
    ):
        example = f"{program} {what} --model outputs/demo/starter/{name}"
        app.command(what, help=text, example=example)(_evaluation_command(what, stages))


def _no_config(example: str) -> ConfigError:
    """Return the answer to a training without ``--config``, with a command that works."""
    return ConfigError(
        "--config: expected a YAML file or the name of a shipped config, got none; `prod9 plan DIR` writes configs for "
        f"your scans, `prod9 configs list` shows those that are shipped, and `{example}` trains on the demo's patients"
    )


def _evaluation_command(name: str, stages: Sequence[str]) -> Callable[..., None]:
    def command(
        config: OptionalConfigOption = None,
        model: ModelOption = None,
        overrides: SetOption = None,
        output_dir: OutputDirOption = None,
        device: DeviceOption = "auto",
        seed: SeedOption = None,
        check: CheckOption = False,
        print_config: PrintConfigOption = False,
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        run_config, checkpoint = load_for_model(
            stages, config, model, overrides=overrides, output_dir=output_dir, seed=seed
        )
        if print_config:
            shared.print_config(run_config)
        elif check:
            report_check(run_config, device=device, as_json=as_json, what=name, checkpoint=checkpoint)
        else:
            _evaluate(name, run_config, checkpoint, device=device, as_json=as_json)

    return command


def _train(
    config: "RunConfig",
    *,
    given: str,
    resume: str | None,
    init_from: str | None,
    device: str,
    ends: float | None,
    as_json: bool,
) -> None:
    """Train.

    Args:
        config: of the run.
        given: ``--config``.
        resume: as the option.
        init_from: as the option.
        device: as the option.
        ends: the time, by ``time.monotonic``, at which to save and stop.
        as_json: as the option.
    """
    from prod9.cli.checks.run import check_inputs

    again = f"What was saved is in {config.output_dir}; run the same command with --resume to go on."
    with shared.resumable(again):
        check_inputs(config)  # what takes milliseconds goes before the seconds that importing Lightning takes
        say_what_begins(config, given)
        from prod9.cli.checks.bases import check_bases

        bases = check_bases(config)
        say_memory(config, bases, device)
        base = bases.opened
        del bases
        from prod9.training.run import train

        left = None if ends is None else ends - time.monotonic()
        result = train(config, resume=resume, init_from=init_from, device=device, max_seconds=left, base=base)
    summary = {"checkpoint": str(result.checkpoint), "step": result.step, "metrics": result.metrics}
    if as_json:
        shared.print_json(summary)
        return
    if result.headline:
        shared.console.print(f"Trained for {result.step} steps: {result.headline}.")
    shared.console.print(f"Checkpoint: {result.checkpoint}")
    shared.console.print(f"Every score: {Path(config.output_dir) / 'metrics.json'}")
    tell_after_training(config, given)


def _evaluate(name: str, config: "RunConfig", checkpoint: "Source", *, device: str, as_json: bool) -> None:
    from prod9.cli.checks.run import check_inputs

    check_inputs(config, writes=False)
    from prod9.training.run import test, validate

    metrics = {"validate": validate, "test": test}[name](config, checkpoint, device=device)
    if as_json:
        shared.print_json({"checkpoint": str(getattr(checkpoint, "path", checkpoint)), "metrics": metrics})
        return
    from prod9.training.recipes.table import recipe_of

    told = recipe_of(config).headline.sentence(metrics, part={"validate": "val", "test": "test"}[name])
    for key, value in sorted(metrics.items()):
        shared.console.print(f"{key:<28} {value:.4f}")
    if told:
        shared.console.print(f"{told[:1].upper()}{told[1:]}.")
    place = Path(str(getattr(checkpoint, "path", checkpoint)))
    shared.console.print(f"Checkpoint: {place}")
    if used := use_of(config, place):
        tell_next(*used)


def report_check(config: "RunConfig", *, device: str, as_json: bool, **how: Any) -> None:
    """Run every check of ``config`` and print what was found; ``how`` as for ``check_run``."""
    from prod9.cli.checks.run import check_run

    print_check(check_run(config, device=device, **how), as_json)


def print_check(report: dict[str, Any], as_json: bool) -> None:
    """Print the findings of a check; the command fails if there are ``errors``."""
    errors, warnings = report.get("errors", []), report.get("warnings", [])
    if as_json:
        shared.print_json(report)
    else:
        for name, value in report.items():
            if name not in ("errors", "warnings"):
                shared.console.print(f"{name:>12}  {_shown(value)}")
        for warning in warnings:
            shared.warn(warning)
        if not errors:
            everything = "It fits, but see the warnings" if warnings else "Everything fits"
            shared.console.print(f"{everything}; nothing was written.")
    for error in errors:
        shared.print_error(f"This does not fit: {error}.")
    if errors:
        raise typer.Exit(shared.FAILED)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)
