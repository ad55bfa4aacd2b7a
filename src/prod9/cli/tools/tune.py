"""``prod9 tune``: settings chosen on validation patients."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.front.after import tell_next
from prod9.cli.judge.reporting import reporting
from prod9.cli.shared import (
    DebugOption,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    SetOption,
    checked_seed,
    console,
    new_app,
)
from prod9.cli.stage import AutoencoderOption, load_for_model, parse_time
from prod9.devices import torch_device
from prod9.errors import CheckpointError, ConfigError
from prod9.stages import GENERATORS, STAGES

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.evaluation.tuning.search import Build, Search, Trial, Tuned
    from prod9.models.checkpoint_manager import Opened
    from prod9.pipelines.labels import AbstractLabelPipeline

SAMPLER, PICTURE = "sampler.yaml", "search.png"
NO_WEAK = "none"

app = new_app("Choose settings on validation patients.")


@app.command("sampler", example="prod9 tune sampler outputs/demo/starter/stage2_label -o outputs/tuned")
def tune_sampler(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, checkpoint or export that generates from a label.")
    ],
    output_dir: Annotated[
        Path,
        typer.Option("--output-dir", "-o", metavar="DIR", help="Where the results go; made if missing."),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Where the run's patients are now.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=2, help="Volumes per label in the last round.")
    ] = 16,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="N|TIME",
            help="Evaluations of networks, or a time such as 30m; decides how many settings are tried. [12 settings]",
        ),
    ] = None,
    weak_model: Annotated[
        str,
        typer.Option(
            "--weak-model",
            metavar="PATH|auto|none",
            help="For autoguidance; auto: the run's own earliest checkpoint, if there is one.",
        ),
    ] = "auto",
    overrides: SetOption = None,
    autoencoder: AutoencoderOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Volumes sampled together.")] = 4,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, callback=checked_seed, help="Of the settings tried and the volumes."),
    ] = 0,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Search for the sampler's settings on the validation patients: quality against cost, with the knee marked.

    Test patients are never looked at. Writes `sampler.yaml`, which `--sampler` of `prod9 generate` and `extends` of a
    config take, `search.json` with every figure, and `search.png`. Run it again after an interruption, and what was
    measured is kept.
    """
    from prod9.files import check_writable

    config, opened = load_for_model(GENERATORS, None, model, overrides=overrides)
    evaluations, seconds = _budget(budget)
    check_writable(output_dir)
    from prod9.evaluation.tuning.picture import write_picture
    from prod9.evaluation.tuning.search import FILE, TuneSettings
    from prod9.models.checkpoint_manager import CheckpointManager

    opened = CheckpointManager.open(opened)
    settings = TuneSettings(volumes=num_samples, evaluations=evaluations, seconds=seconds, seed=seed)
    if overwrite:
        (output_dir / FILE).unlink(missing_ok=True)
    again = f"What was measured is in {output_dir}; the same command goes on from there."
    with shared.resumable(again), reporting() as report:
        search = _search(
            opened,
            config,
            settings,
            path=output_dir / FILE,
            data=data,
            weak_model=weak_model,
            autoencoder=autoencoder,
            device=device,
            batch_size=batch_size,
            report=report,
        )
        tuned = search.run()
    patients = search.about["patients"]
    _write_sampler(output_dir / SAMPLER, search, tuned)
    write_picture(
        output_dir / PICTURE, tuned, title=f"{opened.path.name}, {len(patients)} validation patients"
    )
    if as_json:
        shared.print_json({"output_dir": str(output_dir), "patients": patients, **tuned.to_dict()})
        return
    _print(tuned)
    console.print(
        f"Validation patients: {len(patients)} ({', '.join(patients[:3])} …). Written: {output_dir / SAMPLER}, {FILE}, "
        f"{PICTURE}"
    )
    tell_next(
        "prod9",
        "generate",
        "label",
        "-m",
        model,
        "--sampler",
        output_dir / SAMPLER,
        "-o",
        output_dir / "volumes",
    )


def _budget(text: str | None) -> tuple[float | None, float | None]:
    """Return evaluations or seconds."""
    if text is None:
        return None, None
    if text.strip().isdecimal():
        return float(text), None
    try:
        return None, parse_time(text)
    except ConfigError as error:
        raise ConfigError(
            f"--budget: expected a number of evaluations such as 20000, or a time such as 30m, got {text!r}"
        ) from error


def _search(
    opened: "Opened",
    config: "RunConfig",
    settings: Any,
    *,
    path: Path,
    data: Path | None,
    weak_model: str,
    autoencoder: str | None,
    device: str,
    batch_size: int,
    report: Any,
) -> "Search":
    from prod9.evaluation.judges.loading import load_extractor
    from prod9.evaluation.tuning.scans import describe_scans, validation_scans
    from prod9.evaluation.tuning.search import Search

    entries = validation_scans(opened, data=data)
    place = _weak_place(opened, weak_model)
    pipeline, own, build = _pipeline(opened, config, place, autoencoder, device)
    extractor = load_extractor("random", autoencoder=None, classifier=None, device=pipeline.device)
    scans = describe_scans(entries, pipeline, extractor, device=pipeline.device, report=report)
    about = {
        "command": "tune sampler",
        "sha256": pipeline.sha256,
        "sampler": own.model_dump(mode="json"),
        "patients": sorted({entry.patient_id for entry in entries}),
        "extractor": extractor.name,
    }
    return Search(
        pipeline=pipeline,
        own=own,
        build=build,
        family=STAGES[config.stage].family,
        scans=scans,
        extractor=extractor,
        settings=settings,
        about=about,
        path=path,
        batch_size=batch_size,
        report=report,
    )


def _weak_place(opened: "Opened", wanted: str) -> str | None:
    """Return where the weak model is; None without autoguidance."""
    if wanted == NO_WEAK:
        return None
    from prod9.models.weak import AUTO, find_weak

    if wanted != AUTO:
        return str(Path(wanted).absolute())
    try:
        find_weak(opened)
    except CheckpointError as error:
        shared.warn(f"{error} The search goes on without autoguidance.")
        return None
    return AUTO


def _pipeline(
    opened: "Opened", config: "RunConfig", weak: str | None, autoencoder: str | None, device: str
) -> "tuple[AbstractLabelPipeline, Any, Build]":
    """Return what draws, the section of its sampler, and what makes a sampler of such a section."""
    from prod9.config.load import of_class
    from prod9.config.schema import MaisiDiffusionConfig, TransformerConfig
    from prod9.models.factory import ModelFactory

    chosen = of_class(config, (TransformerConfig, MaisiDiffusionConfig))
    scale = chosen.sampler.autoguidance_scale if weak else 0.0
    own = chosen.sampler.model_copy(update={"weak_model": weak or "auto", "autoguidance_scale": scale})
    # A scale above 0 makes the pipeline load the weak model, whatever the model's own scale is.
    loading = own.model_copy(update={"autoguidance_scale": 1.0}) if weak else own
    how: dict[str, Any] = {
        "settings": chosen.model_copy(update={"sampler": loading}),
        "autoencoder": autoencoder,
        "device": torch_device(device),
    }
    if chosen.stage == "maisi_diffusion":
        from prod9.pipelines.maisi import MAISIPipeline

        flow = chosen.flow
        pipeline = MAISIPipeline.from_checkpoint(opened, **how)
        return pipeline, own, lambda s: ModelFactory.create_flow_sampler(s, flow, autoguided=True)
    if chosen.model.kind != "label_conditional":
        raise ConfigError(
            f"{opened.path}: expected a model that generates from a label alone, got one of kind "
            f"{chosen.model.kind!r}, which makes a volume from others; name a run of the stage2_label configs"
        )
    from prod9.pipelines.maskgit import MaskGiTPipeline

    masking = chosen.masking
    pipeline = MaskGiTPipeline.from_checkpoint(opened, **how)
    return pipeline, own, lambda s: ModelFactory.create_sampler(s, masking, autoguided=True)


def _write_sampler(path: Path, search: "Search", tuned: "Tuned") -> None:
    from prod9.config.yaml import dump_yaml
    from prod9.files import atomic_write

    trial = tuned.trials[tuned.knee]
    section = search.section_of(trial).model_dump(mode="json")
    text = (
        f"# Made by `prod9 tune sampler`: the knee, {trial.evaluations} evaluations per volume, loss "
        f"{trial.point[1]:.2f} on {len(search.about['patients'])} validation patients.\n"
    )
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text + dump_yaml({"sampler": section}), encoding="utf-8")


def _print(tuned: "Tuned") -> None:
    from rich.table import Table

    table = Table(
        "", "setting", "evaluations", "seconds", "loss", "diversity", "multiples of the floor", box=None
    )
    order = sorted(range(len(tuned.trials)), key=lambda i: tuned.trials[i].point)
    for i in order:
        trial = tuned.trials[i]
        marks = [
            (i == tuned.knee, "knee"),
            (i == tuned.best, "best"),
            (i == 0, "own"),
            (i in tuned.front, "front"),
        ]
        table.add_row(
            ", ".join(name for wanted, name in marks if wanted),
            _setting(trial),
            str(trial.evaluations),
            f"{trial.seconds:.2f}",
            f"{trial.point[1]:.2f}",
            _number(trial.quality["diversity"]),
            ", ".join(f"{name} {_number(value)}" for name, value in trial.quality["multiples"].items()),
        )
    console.print(table)


def _setting(trial: "Trial") -> str:
    return ", ".join(f"{name} {value}" for name, value in trial.sampler.items())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def main() -> None:
    """Run ``prod9 tune`` alone."""
    shared.run_app(app)
