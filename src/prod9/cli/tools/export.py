"""``prod9 export``: a folder to share from a trained run."""

import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from prod9.cli.front.after import tell_next, use_of
from prod9.cli.front.places import one_folder
from prod9.cli.shared import DebugOption, JsonOption, console, messages, new_app, print_json
from prod9.system.shell import shown_line

app = new_app("Write a trained model as safetensors with its config, a model card and a manifest.")


@app.command(example="prod9 export outputs/demo/starter/stage2 shared/translate")
def export(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME|PATH", help="What to share: a run folder, a checkpoint or an export."),
    ],
    new_folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The export folder, new or empty; not needed with --bundle or --push."
        ),
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
            metavar="NAME|PATH",
            help="For stage 2: the exported autoencoder to record, so that both folders can move together; without it, "
            "the one it was trained on is exported too, into a folder below.",
        ),
    ] = None,
    transformer: Annotated[
        str | None,
        typer.Option(
            "--transformer",
            "--diffusion",
            metavar="NAME|PATH",
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
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="DIR",
            help="Write a MONAI Bundle, for `python -m monai.bundle run`: the export in DIR/models, configs beside it.",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="ORG/MODEL",
            help="Send the export to this repository of the Hugging Face hub (extra `hub`), made if there is none.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: a new repository that only its owners see.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Export a model for sharing, without paths of this computer and without anything executable.

    It is whole: it takes its autoencoder, its base and its refiner along. Every command that takes `--model` or
    `inputs` takes the folder.
    """
    if bundle is None and push is None:
        output_dir = one_folder(new_folder, output_dir)
    folder, temporary = _folder(output_dir or new_folder, bundle, push, private)
    with temporary as place:
        target = folder or Path(place) / "export"
        _export(
            model, target, half=half, autoencoder=autoencoder, transformer=transformer, weak_model=weak_model,
            bundle=bundle,
        )  # fmt: skip
        sent = None if push is None else _push(target, push, private=private)
        _report(target, bundle=bundle, sent=sent, as_json=as_json)


def _folder(
    output_dir: Path | None, bundle: Path | None, push: str | None, private: bool
) -> tuple[Path | None, AbstractContextManager[str]]:
    """Return where the export goes, None for a temporary folder, and that folder; ConfigError for wrong options."""
    from prod9.errors import ConfigError
    from prod9.files import check_writable

    if bundle is not None and (output_dir is not None or push is not None):
        other = "DIR" if output_dir is not None else "--push"
        raise ConfigError(f"expected --bundle or {other}, got both; give one command each")
    if output_dir is None and bundle is None and push is None:
        raise ConfigError(
            "expected a folder for the export, --bundle DIR or --push ORG/MODEL, got none; add one"
        )
    if private and push is None:
        raise ConfigError("--private: expected --push with it, got none; leave it out")
    if push is not None:
        from prod9.models.named import hub

        hub.parse(push if push.startswith(hub.PREFIX) else hub.PREFIX + push)
        hub.hub_library()
    if output_dir is None and bundle is None:
        return None, TemporaryDirectory()
    outer = output_dir if bundle is None else bundle
    assert outer is not None, "one of the three is given"
    if outer.is_dir() and any(outer.iterdir()):
        raise ConfigError(
            f"{outer}: expected a new or an empty folder, got one with files; name another one."
        )
    check_writable(outer)
    return outer if bundle is None else outer / "models", nullcontext("")


def _export(
    model: str,
    folder: Path,
    *,
    half: bool,
    autoencoder: str | None,
    transformer: str | None,
    weak_model: str | None,
    bundle: Path | None,
) -> None:
    from prod9.models.named.find import require_model

    require_model(model)
    import torch

    from prod9.models.checkpoint_manager import CheckpointManager
    from prod9.models.named.bundle import require_generator, write_bundle

    opened = CheckpointManager.open(model)
    if bundle is not None:
        require_generator(dict(opened.header), model)
    dtype = torch.float16 if half else torch.float32
    CheckpointManager.export(
        opened, folder, dtype=dtype, autoencoder=autoencoder, transformer=transformer, weak=weak_model
    )
    if bundle is not None:
        from prod9.models.export import read_header

        write_bundle(bundle, read_header(folder))


def _push(folder: Path, repo: str, *, private: bool) -> str:
    from prod9.models.named.hub import push

    messages.print(f"Sending the export to {repo}.")
    return push(folder, repo, private=private)


def _report(folder: Path, *, bundle: Path | None, sent: str | None, as_json: bool) -> None:
    """Print the files, where they are, and the command that uses them."""
    from prod9.config.load import config_from_dict
    from prod9.models.export import read_header
    from prod9.models.named.bundle import example

    outer = folder if bundle is None else bundle
    files = {
        path.relative_to(outer).as_posix(): path.stat().st_size
        for path in sorted(outer.rglob("*"))
        if path.is_file()
    }
    header = read_header(folder)
    config = config_from_dict(header["config"], source=str(folder))
    place = sent or str(folder)
    # Results do not belong into what is shared.
    words = ["made" if word.startswith(f"{place}/") else word for word in use_of(config, place)]
    use = words if bundle is None else shlex.split(example(bundle, header))
    if as_json:
        print_json({"folder": str(outer), "bytes": files, "next": shown_line(use), "pushed": sent})
        return
    for name, size in files.items():
        console.print(f"{name:34} {size / 1e6:8.2f} MB")
    console.print(sent or str(outer))
    if use:
        tell_next(*use)
