"""``prod9 plan``: configs that fit a dataset and a machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.shared import DebugOption, DeviceOption, JsonOption, OverwriteOption, console, new_app
from prod9.cli.stage import CalibrateOption
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.stages import FAMILIES, STAGES, Family, stages_of
from prod9.system import machine
from prod9.system.wording import duration

if TYPE_CHECKING:
    from prod9.cli.checks.cost import Cost
    from prod9.config.schema import RunConfig
    from prod9.planning.choose import StagePlan
    from prod9.planning.footprint import Device

GIB = 1024**3

app = new_app("Choose grid, crops, batches and networks for a dataset and a machine.")


@app.command(example="prod9 plan ~/brats -o plan --memory 24")
def plan(
    data: Annotated[
        Path,
        typer.Argument(metavar="DIR|FINGERPRINT", help="A dataset, or what `prod9 data info` wrote of it."),
    ],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Where the configs go; made if missing.")
    ] = Path("plan"),
    runs_dir: Annotated[
        str | None,
        typer.Option("--runs-dir", metavar="DIR", help="Where the runs will go; default: beside them."),
    ] = None,
    family: Annotated[
        str, typer.Option("--family", metavar="maskgit|maisi|all", help="Which models to plan.")
    ] = "maskgit",
    memory: Annotated[
        float | None,
        typer.Option("--memory", min=0.1, metavar="GIB", help="Plan for a GPU of this size, wherever it is."),
    ] = None,
    muon: Annotated[
        bool, typer.Option("--muon", help="Step hidden matrices with Muon, which keeps less memory.")
    ] = False,
    devices: Annotated[
        int,
        typer.Option(
            "--devices", min=1, metavar="N", help="GPUs of that memory; stage 2 is divided over them."
        ),
    ] = 1,
    device: DeviceOption = "auto",
    calibrate: CalibrateOption = True,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write configs of every stage that the data allow, each fitting the dataset and the machine.

    Translation needs two modalities, control needs segmentations; a MedMNIST3D file has examples and foregrounds
    instead. The fingerprint gives the size of heads and the modalities that every case has, the device its memory.
    Each config comes with its estimated peak memory, the disk for it and its tokens and, for this machine, the time
    that it takes, from a few measured steps.
    """
    if family not in (*FAMILIES, "all"):
        raise ConfigError(f"--family: expected {', '.join(FAMILIES)} or all, got {family!r}")
    chosen: list[Family] = [one for one in FAMILIES if family in (one, "all")]
    names = [name for one in chosen for stage in stages_of(one) if stage.is_planned for name in stage.configs]
    possible = [output_dir / f"{name}.yaml" for name in names]
    there = [path for path in possible if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"--output-dir: expected no {there[0]}; add --overwrite, or name another folder")
    fingerprint = _fingerprint(data)
    from prod9.models.meta import count_parameters
    from prod9.planning.choose import images_of, plan_family

    kind, memory_bytes = ("cuda", int(memory * GIB)) if memory is not None else _machine(device)
    runs = runs_dir or str(output_dir / "runs")
    plans = [
        plan_family(
            fingerprint,
            family=one,
            memory_bytes=memory_bytes,
            device=kind,
            output_dir=runs,
            count=count_parameters,
            muon=muon,
            devices=devices,
        )
        for one in chosen
    ]
    costs = {} if memory is not None else _costs(plans, device, measures=calibrate)
    report = []
    for name, stage in (pair for plan in plans for pair in plan.items()):
        path = output_dir / f"{name}.yaml"
        row = _row(stage, path, costs.get(name), images_of(fingerprint))
        report.append(row)
        _write(path, stage, row, most_workers=machine.cores() if memory is None else None)
    if as_json:
        shared.print_json({"device": kind, "memory_gib": round(memory_bytes / GIB, 2), "stages": report})
        return
    for row in report:
        console.print(f"{row['config']}: {_described(row)}")
    for row in report:
        console.print(f"  prod9 train --config {row['config']}")


def _fingerprint(data: Path) -> dict[str, Any]:
    """Return the fingerprint in the file ``data``, or that of the dataset ``data``."""
    if data.is_file() and data.suffix == ".json":
        from prod9.data.checking.fingerprint import read_fingerprint
        from prod9.errors import DataError

        try:
            return read_fingerprint(data)
        except DataError:
            pass  # perhaps a list of files: the check says what is wrong with it if not
    from prod9.cli.data.check import checked_medmnist3d, is_medmnist3d

    if is_medmnist3d(data):
        from prod9.data.checking.medmnist import fingerprint_medmnist3d

        return fingerprint_medmnist3d(checked_medmnist3d(data, deep=True))
    from prod9.data.checking.fingerprint import fingerprint
    from prod9.data.checking.report import check_dataset

    with shared.progress() as bar:
        task = bar.add_task("Reading volumes", total=None)
        report = check_dataset(
            data, deep=True, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    return fingerprint(report)


def _machine(device: str) -> "tuple[Device, int]":
    """Return the device that this machine trains on, and its memory in bytes."""
    from prod9.cli.checks.resources import device_memory

    chosen = torch_device(device)
    memory = device_memory(str(chosen))
    if memory is None:
        raise ConfigError("--memory: expected a number, since this system does not tell its memory; pass one")
    return ("cuda" if chosen.type == "cuda" else "cpu"), memory


def _costs(
    plans: "list[dict[str, StagePlan[RunConfig]]]", device: str, *, measures: bool
) -> "dict[str, Cost]":
    """Return what each stage costs on this machine. A control network's estimate is corrected as its base's was."""
    from prod9.cli.checks.cost import cost_of

    costs: dict[str, Cost] = {}
    for plan in plans:
        stage1 = next(iter(plan.values()))
        below = getattr(stage1.config, "model", None)
        factor = None
        for name, stage in plan.items():
            shared.messages.print(f"Timing {name} …")
            costs[name] = cost_of(
                stage.config,
                stage.resources,
                below,
                device=torch_device(device),
                measures=measures,
                work=stage.multiplications,
                factor=factor,
            )
            factor = costs[name].factor or factor
    return costs


def _row(stage: "StagePlan[RunConfig]", path: Path, cost: "Cost | None", volumes: int) -> dict[str, Any]:
    needs, config = stage.resources, stage.config
    trained = STAGES[config.stage]
    kept = config.callbacks.checkpoint.save_top_k + 2
    return {
        "config": str(path),
        "command": trained.command,
        "tokens": list(needs.latent_grid),
        "parameters": needs.parameters,
        "batch_size": config.data.batch_size,
        "crop_size": None if config.data.crop_size is None else list(config.data.crop_size),
        "memory_gib": round(stage.peak_bytes / GIB, 2),
        "store_gib": round(volumes * needs.store_bytes_per_volume / GIB, 3),
        "checkpoints_gib": round(kept * needs.checkpoint_bytes / GIB, 3),
        "seconds_per_step": None if cost is None else cost.seconds_per_step,
        "time_source": None if cost is None else cost.source,
        "steps": config.training.max_steps,
    }


def _described(row: dict[str, Any]) -> str:
    parts = [
        f"{' × '.join(map(str, row['tokens']))} tokens",
        f"{row['parameters'] / 1e6:.1f} M parameters",
        f"about {row['memory_gib']:.1f} GiB",
        f"{row['store_gib'] + row['checkpoints_gib']:.1f} GiB of disk",
    ]
    if row["seconds_per_step"] is not None:
        time = duration(row["seconds_per_step"] * row["steps"])
        parts.append(
            f"about {row['seconds_per_step']:.2g} s per step, {time} for {row['steps']:,} ({row['time_source']})"
        )
    return ", ".join(parts)


def _write(
    path: Path, stage: "StagePlan[RunConfig]", row: dict[str, Any], *, most_workers: int | None
) -> None:
    """Write the config of a stage. most_workers: cores of this machine; None if another machine will train."""
    from prod9.config.yaml import dump_yaml
    from prod9.files import atomic_write, check_writable

    values = dict(stage.values)
    if most_workers is not None:
        values["data"] = {**values["data"], "num_workers": min(values["data"]["num_workers"], most_workers)}
    check_writable(path.parent)
    with atomic_write(path) as temporary:
        text = f"# Made by `prod9 plan`: {_described(row)}.\n{dump_yaml(values)}"
        temporary.write_text(text, encoding="utf-8")
