"""``train``, ``validate`` and ``test``: the same three commands for every stage.

The module of a stage adds its own (``infer`` or ``generate``)::

    app = new_app("…")
    add_run_commands(app, "autoencoder")
"""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.parsing import ResumeCommand
from prod9.cli.shared import (
    CheckOption,
    ConfigOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    OutputDirOption,
    PrintConfigOption,
    SeedOption,
    SetOption,
)
from prod9.errors import ConfigError

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Source

OptionalConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="NAME_OR_PATH",
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
        metavar="PATH",
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
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_time(text: str) -> float:
    """Return the seconds of a time such as ``90m``, ``11h30m``, ``01:30:00`` or SLURM's ``1-12:00:00``; ConfigError."""
    clock = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,4}):(\d\d)(?::(\d\d))?", text.strip())
    units = re.fullmatch(r"(?:\d+(?:\.\d+)?[dhms])+", text.strip())
    seconds = 0.0
    if clock:
        days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
        seconds = days * 86400.0 + hours * 3600 + minutes * 60 + rest
    elif units:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", text))
    if not 0 < seconds < 1e9:
        raise ConfigError(f"--max-time: expected a time such as 90m, 11h30m or 01:30:00, got {text!r}")
    return seconds


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


def add_run_commands(app: typer.Typer, *stages: str) -> None:
    """Add ``train``, ``validate`` and ``test`` of ``stages`` to ``app``; config or model decide which stage it is."""

    @app.command(cls=ResumeCommand)
    def train(
        config: ConfigOption,
        overrides: SetOption = None,
        output_dir: OutputDirOption = None,
        device: DeviceOption = "auto",
        seed: SeedOption = None,
        resume: ResumeOption = None,
        init_from: InitFromOption = None,
        max_time: MaxTimeOption = None,
        check: CheckOption = False,
        print_config: PrintConfigOption = False,
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Train, validate and save as the config says; `--resume` goes on where a run stopped."""
        began = time.monotonic()
        run_config = shared.load(config, stage=stages, overrides=overrides, output_dir=output_dir, seed=seed)
        ends = None if max_time is None else began + parse_time(max_time)
        if resume is not None and init_from is not None:
            raise ConfigError(
                "--resume and --init-from: expected one of them, since the first goes on with a run and the other "
                "starts a new one, got both; leave one out"
            )
        if print_config:
            shared.print_config(run_config)
        elif check:
            report_check(run_config, device=device, as_json=as_json, resume=resume, init_from=init_from)
        else:
            _train(run_config, resume=resume, init_from=init_from, device=device, ends=ends, as_json=as_json)

    for name, text in (
        ("validate", "Measure a trained model on the validation patients."),
        ("test", "Measure a trained model on the test patients, which nothing else sees."),
    ):
        app.command(name, help=text)(_evaluation_command(name, stages))


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
    resume: str | None,
    init_from: str | None,
    device: str,
    ends: float | None,
    as_json: bool,
) -> None:
    """Train. ends: the time, by ``time.monotonic``, at which to save and stop."""
    from prod9.cli.checks.run import check_inputs

    again = f"What was saved is in {config.output_dir}; run the same command with --resume to go on."
    with shared.resumable(again):
        check_inputs(config)  # what takes milliseconds goes before the seconds that importing Lightning takes
        from prod9.cli.checks.bases import check_bases

        base = check_bases(config).opened
        from prod9.training.run import train

        left = None if ends is None else ends - time.monotonic()
        result = train(config, resume=resume, init_from=init_from, device=device, max_seconds=left, base=base)
    summary = {"checkpoint": str(result.checkpoint), "step": result.step, "metrics": result.metrics}
    _print_result(summary, as_json)


def _evaluate(name: str, config: "RunConfig", checkpoint: "Source", *, device: str, as_json: bool) -> None:
    from prod9.cli.checks.run import check_inputs

    check_inputs(config, writes=False)
    from prod9.training.run import test, validate

    metrics = {"validate": validate, "test": test}[name](config, checkpoint, device=device)
    _print_result({"checkpoint": str(checkpoint), "metrics": metrics}, as_json)


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


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        shared.print_json(result)
        return
    for name, value in sorted(result["metrics"].items()):
        shared.console.print(f"{name:<28} {value:.4f}")
    shared.console.print(f"Checkpoint: {result['checkpoint']}")
