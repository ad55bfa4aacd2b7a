"""``prod9 generate`` and ``prod9-generate``: volumes out of trained models.

``label`` is also ``prod9-train-transformer generate``.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.outputs import OutputFolder
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
from prod9.cli.stage import AutoencoderOption, ModelOption, OptionalConfigOption, load_for_model, print_check
from prod9.cli.translate import translate
from prod9.errors import ConfigError

if TYPE_CHECKING:
    from prod9.pipelines.maskgit import MaskGiTPipeline
    from prod9.training.config_schema import RunConfig

ALL = "all"
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="NAME|all", help="What to generate, e.g. T1; repeatable. [all]"),
]

app = new_app("Generate volumes with trained models.")
app.command("translate")(translate)


@app.command("label")
def generate_labels(
    output_dir: OutputsOption,
    model: ModelOption = None,
    config: OptionalConfigOption = None,
    overrides: SetOption = None,
    label: LabelOption = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=1, help="Volumes of each label.")
    ] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Volumes sampled together.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Volume k is drawn with this seed plus k.")] = 0,
    autoencoder: AutoencoderOption = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Decoding steps.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Of the drawn tokens.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", help="Classifier-free guidance; 0 for none.")
    ] = None,
    order: Annotated[
        str | None, typer.Option("--order", metavar="confidence|halton|random", help="Which tokens first.")
    ] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    check: CheckOption = False,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Generate volumes of a class label: `T1_0000.nii.gz` and so on, with a manifest.

    Run it again with a larger --num-samples, or after an interruption, and only what is missing is made.
    """
    flags = {"steps": steps, "temperature": temperature, "guidance_scale": guidance_scale, "order": order}
    changes = [*(overrides or []), *((f"sampler.{k}", v) for k, v in flags.items() if v is not None)]
    run_config, path = load_for_model("transformer", config, model, overrides=changes)
    if print_config:
        shared.print_config(run_config)
        return
    pipeline = _load_pipeline(path, run_config, device, autoencoder)
    labels = _chosen(label, pipeline)
    if check:
        print_check(_describe(pipeline, labels, num_samples, path), as_json)
        return
    folder = OutputFolder(Path(output_dir), _settings(pipeline, run_config, seed), overwrite=overwrite)
    again = f"What was made is in {folder.path}; run the same command again for the rest."
    with shared.resumable(again):
        made = list(_generate(pipeline, folder, labels, num_samples, seed, batch_size))
    total = num_samples * len(labels)
    result = {"output_dir": str(folder.path), "made": made, "kept": total - len(made)}
    if as_json:
        shared.print_json(result)
    else:
        shared.console.print(
            f"{len(made)} volumes made, {result['kept']} kept, in {folder.path}", markup=False
        )


def _load_pipeline(
    path: Path, config: "RunConfig", device: str, autoencoder: str | None
) -> "MaskGiTPipeline":
    from prod9.pipelines.maskgit import MaskGiTPipeline
    from prod9.training.config import config_to_dict

    # The config was checked already, with the changes of the command line; only these sections matter here.
    values = config_to_dict(config)
    sections = [(name, values[name]) for name in ("sampler", "masking", "sliding_window")]
    chosen = shared.torch_device(device)
    return MaskGiTPipeline.from_checkpoint(path, device=chosen, autoencoder=autoencoder, overrides=sections)


def _chosen(labels: Sequence[str] | None, pipeline: "MaskGiTPipeline") -> list[str]:
    if not labels or ALL in labels:
        return pipeline.label_names()
    known = pipeline.label_names()
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise ConfigError(f"--label: expected {', '.join(known)} or {ALL}, got {', '.join(unknown)}")
    return list(dict.fromkeys(labels))


def _settings(pipeline: "MaskGiTPipeline", config: "RunConfig", seed: int) -> dict[str, Any]:
    from prod9.training.config import config_to_dict

    values = config_to_dict(config)
    return {
        "command": "generate label",
        "sha256": pipeline.sha256,
        "seed": seed,
        "sampler": values["sampler"],
        "masking": values["masking"],
        "sliding_window": values["sliding_window"],
    }


def _describe(pipeline: "MaskGiTPipeline", labels: list[str], num_samples: int, path: Path) -> dict[str, Any]:
    count = num_samples * len(labels)
    voxels = pipeline.grid[0] * pipeline.grid[1] * pipeline.grid[2]
    return {
        "model": str(path),
        "labels": ", ".join(labels),
        "volumes": count,
        "grid": list(pipeline.grid),
        "tokens": list(pipeline.token_grid),
        "steps": pipeline.sampler.steps,
        "device": str(pipeline.device),
        "disk_mb": round(count * voxels * 4 / 1e6, 1),
    }


def _generate(
    pipeline: "MaskGiTPipeline",
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
            for start, count in _runs(indices):

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
                    folder.record(name, label=label, index=volume.index, seed=volume.seed)
                    volumes.write(folder.path / name, volume.data, volume.affine)
                    yield name
                done += count


def _file_name(label: str, index: int) -> str:
    return f"{label}_{index:04d}.nii.gz"


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ``(first, count)`` of each run of consecutive numbers."""
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        yield numbers[0], len(numbers)


def main() -> None:
    """Run the command line."""
    run_app(app)
