"""``prod9 export``: a folder to share from a trained run."""

from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.front.after import tell_next, use_of
from prod9.cli.front.places import one_folder
from prod9.cli.shared import DebugOption, JsonOption, console, new_app, print_json

app = new_app("Write a trained model as safetensors with its config, a model card and a manifest.")


@app.command(example="prod9 export outputs/demo/starter/stage2 shared/translate")
def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT", help="What to share: a run folder or a checkpoint.")
    ],
    new_folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The export folder; new or empty.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", metavar="DIR", help="The same, as an option.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Keep weights as float16: half the size, cast back when loaded.")
    ] = False,
    autoencoder: Annotated[
        str | None,
        typer.Option(
            "--autoencoder",
            metavar="RUN|CHECKPOINT|EXPORT",
            help="For stage 2: the exported autoencoder to record, so that both folders can move together; without it, "
            "the one it was trained on is exported too, into a folder below.",
        ),
    ] = None,
    transformer: Annotated[
        str | None,
        typer.Option(
            "--transformer",
            "--diffusion",
            metavar="RUN|CHECKPOINT|EXPORT",
            help="For stage 3 or a refiner: the exported transformer or diffusion network to record, likewise.",
        ),
    ] = None,
    weak_model: Annotated[
        str | None,
        typer.Option(
            "--weak-model",
            metavar="PATH|auto",
            help="For stage 2: take along the model that --autoguidance of `prod9 generate` guides by; auto: the "
            "run's own earliest checkpoint.",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Export a model for sharing, without paths of this computer and without anything executable.

    Every command that takes `--model` or `inputs` takes the folder.
    """
    output_dir = one_folder(new_folder, output_dir)
    from prod9.errors import ConfigError
    from prod9.files import check_writable

    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise ConfigError(
            f"{output_dir}: expected a new or an empty folder, got one with files; name another one."
        )
    check_writable(output_dir)
    import torch

    from prod9.config.load import config_from_dict
    from prod9.models.checkpoint_manager import CheckpointManager

    dtype = torch.float16 if half else torch.float32
    folder = CheckpointManager.export(
        model, output_dir, dtype=dtype, autoencoder=autoencoder, transformer=transformer, weak=weak_model
    )
    exported = config_from_dict(CheckpointManager.open(folder).header["config"], source=str(folder))
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if as_json:
        print_json({"folder": str(folder), "bytes": files})
        return
    for name, size in files.items():
        console.print(f"{name:34} {size / 1e6:8.2f} MB")
    console.print(str(folder))
    if used := use_of(exported, folder):
        tell_next(*used)
