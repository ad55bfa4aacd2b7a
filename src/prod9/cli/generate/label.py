"""``prod9 generate`` and ``prod9-generate``: volumes out of trained models.

``label`` is also ``prod9-train-transformer generate`` and ``prod9-train-maisi-diffusion generate``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.generate.control import generate_control
from prod9.cli.generate.inpaint import inpaint
from prod9.cli.generate.options import (
    GuidanceScaleOption,
    GuidanceScheduleOption,
    OrderOption,
    RemaskingOption,
    StepsOption,
    TemperatureOption,
    TopPOption,
    sampler_changes,
)
from prod9.cli.generate.outputs import OutputFolder, consecutive, report_made
from prod9.cli.generate.patients import generate_patients
from prod9.cli.generate.translate import translate
from prod9.cli.naming import chosen_labels
from prod9.cli.shared import (
    CheckOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    OutputsOption,
    OverwriteOption,
    PrintConfigOption,
    SetOption,
    new_app,
    run_app,
)
from prod9.cli.stage import (
    AutoencoderOption,
    ModelOption,
    OptionalConfigOption,
    load_for_model,
    print_check,
)
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.stages import GENERATORS

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Source
    from prod9.pipelines.labels import AbstractLabelPipeline

SAMPLING = ("sampler", "masking", "flow", "sliding_window")
"""Sections of a config that decide what is sampled, where it has them."""
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="NAME|all", help="What to generate, e.g. T1; repeatable. [all]"),
]

app = new_app("Generate volumes with trained models.")
app.command("translate")(translate)
app.command("control")(generate_control)
app.command("inpaint")(inpaint)
app.command("patients")(generate_patients)


@app.command("label")
def generate_labels(
    output_dir: OutputsOption,
    model: ModelOption = None,
    config: OptionalConfigOption = None,
    overrides: SetOption = None,
    label: LabelOption = None,
    example: Annotated[
        list[Path] | None,
        typer.Option(
            "--example", metavar="FILE", help="Few-shot: another volume of the one label; repeatable."
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=1, help="Volumes of each label.")
    ] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Volumes sampled together.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Volume k is drawn with this seed plus k.")] = 0,
    autoencoder: AutoencoderOption = None,
    steps: StepsOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    order: OrderOption = None,
    remasking: RemaskingOption = None,
    guidance_scale: GuidanceScaleOption = None,
    guidance_schedule: GuidanceScheduleOption = None,
    solver: Annotated[
        str | None, typer.Option("--solver", metavar="euler|heun", help="MAISI: how the flow is integrated.")
    ] = None,
    spacing: Annotated[
        tuple[float, float, float] | None,
        typer.Option("--spacing", metavar="X Y Z", help="MAISI: mm of a voxel; default: as trained."),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    check: CheckOption = False,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Generate volumes of a class label: `T1_0000.nii.gz` and so on, with a manifest.

    The model is a transformer of MaskGiT or a diffusion network of MAISI; its checkpoint says which.
    Run it again with a larger --num-samples, or after an interruption, and only what is missing is made.
    """
    changes = sampler_changes(
        overrides,
        steps=steps,
        temperature=temperature,
        top_p=top_p,
        order=order,
        remasking=remasking,
        guidance_scale=guidance_scale,
        guidance_schedule=guidance_schedule,
        solver=solver,
    )
    run_config, opened = load_for_model(GENERATORS, config, model, overrides=changes)
    if print_config:
        shared.print_config(run_config)
        return
    pipeline = _load_pipeline(opened, run_config, device, autoencoder, spacing)
    del opened  # its weights are in the networks now
    labels = chosen_labels(label, pipeline.label_names())
    _show(pipeline, labels, example or [])
    if check:
        where = model or run_config.output_dir
        print_check(_describe(pipeline, labels, num_samples, where), as_json)
        return
    settings = _settings(pipeline, run_config, seed, spacing, example or [])
    again = f"What was made is in {output_dir}; run the same command again for the rest."
    with OutputFolder(Path(output_dir), settings, overwrite=overwrite) as folder, shared.resumable(again):
        made = list(_generate(pipeline, folder, labels, num_samples, seed, batch_size))
    report_made(folder, made, num_samples * len(labels), as_json)


def _load_pipeline(
    source: "Source",
    config: "RunConfig",
    device: str,
    autoencoder: str | None,
    spacing: tuple[float, float, float] | None,
) -> "AbstractLabelPipeline":
    from prod9.config.load import config_to_dict

    # The config was checked already, with the changes of the command line; only these sections matter here.
    values = config_to_dict(config)
    sections = [(name, values[name]) for name in SAMPLING if name in values]
    chosen = torch_device(device)
    if config.stage == "maisi_diffusion":
        from prod9.pipelines.maisi import MAISIPipeline

        return MAISIPipeline.from_checkpoint(
            source, device=chosen, autoencoder=autoencoder, overrides=sections, spacing=spacing
        )
    if spacing is not None:
        raise ConfigError("--spacing: expected a MAISI model, got a transformer, which knows no spacing")
    from prod9.pipelines.maskgit import MaskGiTPipeline

    return MaskGiTPipeline.from_checkpoint(source, device=chosen, autoencoder=autoencoder, overrides=sections)


def _show(pipeline: "AbstractLabelPipeline", labels: Sequence[str], files: Sequence[Path]) -> None:
    """Let a few-shot model go by the volumes in ``files``, brought to its grid as in training."""
    if not files:
        return
    from prod9 import volumes
    from prod9.pipelines.maskgit import MaskGiTPipeline

    if not isinstance(pipeline, MaskGiTPipeline) or pipeline.placement is None:
        raise ConfigError("--example: expected a transformer of kind single_stream, got a MAISI model")
    if len(labels) != 1:
        raise ConfigError(f"--example: expected one --label that they are of, got {', '.join(labels)}")
    placed = [pipeline.placement.place({labels[0]: volumes.read(file)}) for file in files]
    pipeline.show([one.images[labels[0]] for one in placed])


def _settings(
    pipeline: "AbstractLabelPipeline",
    config: "RunConfig",
    seed: int,
    spacing: tuple[float, float, float] | None,
    examples: Sequence[Path],
) -> dict[str, Any]:
    from prod9.config.load import config_to_dict
    from prod9.files import sha256

    values = config_to_dict(config)
    return {
        "command": "generate label",
        "sha256": pipeline.sha256,
        "seed": seed,
        **{name: values[name] for name in SAMPLING if name in values},
        **({"spacing": list(spacing)} if spacing is not None else {}),
        **({"examples": [sha256(file) for file in examples]} if examples else {}),
    }


def _describe(
    pipeline: "AbstractLabelPipeline", labels: list[str], num_samples: int, model: str
) -> dict[str, Any]:
    count = num_samples * len(labels)
    voxels = pipeline.grid[0] * pipeline.grid[1] * pipeline.grid[2]
    return {
        "model": model,
        "labels": ", ".join(labels),
        "volumes": count,
        "grid": list(pipeline.grid),
        "tokens": list(pipeline.latent_grid),
        "steps": pipeline.steps,
        "device": str(pipeline.device),
        "disk_mb": round(count * voxels * 4 / 1e6, 1),
    }


def _generate(
    pipeline: "AbstractLabelPipeline",
    folder: OutputFolder,
    labels: list[str],
    num_samples: int,
    seed: int,
    batch_size: int,
) -> Iterator[str]:
    from prod9 import volumes

    missing = {
        label: [k for k in range(num_samples) if not folder.is_done(_file_name(label, k))] for label in labels
    }
    with shared.progress() as bar:
        for label, indices in missing.items():
            if not indices:
                continue
            task = bar.add_task(label, total=len(indices))
            done = 0
            for start, count in consecutive(indices):

                def report(share: float, _: int, task: Any = task, done: int = done) -> None:
                    bar.update(task, completed=done + share)

                for volume in pipeline.generate(
                    label,
                    num_samples=count,
                    seed=seed,
                    batch_size=batch_size,
                    start=start,
                    progress=report,
                ):
                    name = _file_name(label, volume.index)
                    noted = {"label": label, "index": volume.index, "seed": volume.seed}
                    with folder.writing(name, **noted) as target:
                        volumes.write(target, volume.data, volume.affine)
                    yield name
                done += count


def _file_name(label: str, index: int) -> str:
    return f"{label}_{index:04d}.nii.gz"


def main() -> None:
    """Run the command line."""
    run_app(app)
