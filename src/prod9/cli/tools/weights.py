"""``prod9 weights``: published networks; which are known, which were found, and how to import them."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli.front.after import tell_next, use_of
from prod9.cli.shared import DebugOption, JsonOption, console, messages, new_app, print_json, print_table
from prod9.errors import CheckpointError, ConfigError, Prod9Error
from prod9.system.machine import expand
from prod9.system.wording import plural

if TYPE_CHECKING:
    from prod9.models.released import FeatureNetwork, Released

app = new_app(
    "List the packaged models; list, verify and import published weights. Nothing is downloaded: get the files from "
    "their publishers."
)

NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Which network it is, if the file's name does not say."),
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The publisher's file.")]


@app.command("list", example="prod9 weights list")
def list_weights(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the packaged models, which work at once, then the published networks: source, licence, where found."""
    packaged, published = _packaged_rows(), _published_rows()
    if as_json:
        print_json([*packaged, *published])
        return
    console.print("Packaged with prod9:")
    print_table(
        ("--model", "MB", "licence", "trained on", "what it does"),
        [
            [
                ", ".join(row["names"]),
                f"{row['bytes'] / 1e6:.1f}",
                row["licence"],
                row["trained_on"],
                row["does"],
            ]
            for row in packaged
        ],
    )
    console.print("\nPublished by others, to import with `prod9 weights import`:")
    shown = ("name", "file", "source", "licence", "found")
    print_table(shown, [[row[key] or "no" for key in shown] for row in published])


def _packaged_rows() -> list[dict[str, Any]]:
    from prod9.models.named.packaged import LICENCE, PACKAGED

    return [
        {
            "name": model.names[0],
            "names": list(model.names),
            "does": model.does,
            "bytes": model.num_bytes,
            "licence": LICENCE,
            "trained_on": model.trained_on,
            "found": str(model.folder),
        }
        for model in PACKAGED.values()
    ]


def _published_rows() -> list[dict[str, Any]]:
    keys = ("name", "file", "source", "licence", "config", "parameters", "found")
    rows: list[dict[str, Any]] = []
    for entry in _known().values():
        found = _find(entry.name)
        here = {"file": entry.files[0], "found": None if found is None else str(found)}
        rows.append({key: here[key] if key in here else getattr(entry, key) for key in keys})
    return rows


@app.command(example="prod9 weights verify autoencoder_epoch273.pt")
def verify(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE…]", help="Files to verify; default: all found.")
    ] = None,
    name: NameOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check that files hold exactly the tensors of their networks, and print their SHA-256."""
    if files:
        chosen = {path: name or _name_of(path) for path in files}
    else:
        found = {entry: _find(entry) for entry in _known()}
        chosen = {path: entry for entry, path in found.items() if path is not None}
    results, failed = [], []
    for path, entry in chosen.items():
        try:
            results.append({"file": str(path), "name": entry, "sha256": _verify(entry, path), "ok": True})
        except Prod9Error as error:
            failed.append(str(error))
            results.append({"file": str(path), "name": entry, "ok": False, "error": str(error)})
    if as_json:
        print_json(results)
    else:
        for result in results:
            wrong = "NOT AS PUBLISHED" if Path(result["file"]).is_file() else "not here"
            console.print(f"{result['file']}: {result.get('sha256', wrong)}")
        if not results:
            messages.print("No known file was found; `prod9 weights list` says what is wanted.")
    if failed:
        raise CheckpointError(f"{len(failed)} of {plural(chosen, 'file')} failed:\n" + "\n".join(failed))


@app.command("import", example="prod9 weights import autoencoder_epoch273.pt")
def import_weights(
    file: FileArgument,
    output_dir: Annotated[
        str | None,
        typer.Option(
            "--output-dir", "-o", metavar="DIR", help="Folder of the export; default: weights/NAME."
        ),
    ] = None,
    name: NameOption = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(
            "--autoencoder", metavar="NAME|PATH", help="For a diffusion network: its imported autoencoder."
        ),
    ] = None,
    diffusion: Annotated[
        Path | None,
        typer.Option("--diffusion", metavar="NAME|PATH", help="For a control network: its imported base."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a published file strictly, pin its SHA-256, and put it where every command finds it.

    MAISI networks become export folders for `--model`, `--init-from` and `inputs.autoencoder`; perceptual
    networks are copied to PROD9_WEIGHTS_DIR.
    """
    entry = name or _name_of(file)
    digest = _verify(entry, file)
    from prod9.models.released import RELEASED

    if entry in RELEASED:
        target = _import_network(RELEASED[entry], file, output_dir, autoencoder, diffusion)
    else:
        target = _copy_feature_network(entry, file, digest)
    result = {"name": entry, "sha256": digest, "imported": str(target)}
    if as_json:
        print_json(result)
    else:
        console.print(f"{entry} is in {target} (SHA-256 of the file {digest})")
        _tell_next(target, is_network=entry in RELEASED)


def _tell_next(target: Path, *, is_network: bool) -> None:
    """Print what an imported network is used by."""
    if not is_network:
        tell_next("prod9", "evaluate", "images", "REAL_PATIENTS", "GENERATED", "-o", "scores")
        return
    from prod9.config.load import config_from_dict
    from prod9.models.export import read_header

    words = use_of(config_from_dict(read_header(target)["config"], source=str(target)), str(target))
    tell_next(*(f"{target.name}_made" if word.startswith(f"{target}/") else word for word in words))


def _known() -> "dict[str, Released | FeatureNetwork]":
    from prod9.models.released import FEATURE_NETWORKS, RELEASED

    return {**RELEASED, **FEATURE_NETWORKS}


def _find(name: str) -> Path | None:
    from prod9.measures.weights import weight_folders

    wanted = _known()[name].files
    places = (folder / file for folder in weight_folders() for file in wanted)
    return next((path for path in places if path.is_file()), None)


def _name_of(path: Path) -> str:
    names = [name for name, entry in _known().items() if path.name in entry.files]
    if not names and not path.is_file():
        raise ConfigError(
            f"{path}: expected a file of weights, got {_what(path)}; check the path, and say which network it is with "
            "--name if the file is not called as its publisher calls it."
        )
    if not names:
        raise ConfigError(
            f"{path}: expected a file that its publisher calls {', '.join(e.files[0] for e in _known().values())}, "
            f"got {path.name}; say which network it is with --name."
        )
    return names[0]


def _verify(name: str, path: Path) -> str:
    """Return the SHA-256 of ``path``; CheckpointError when its tensors are not those of the network."""
    from prod9.files import sha256
    from prod9.models.released import RELEASED
    from prod9.models.released_weights import check_released, read_released

    if name not in _known():
        raise ConfigError(f"--name: expected one of {', '.join(_known())}, got {name!r}")
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file of weights, got {_what(path)}; check the path.")
    if name in RELEASED:
        weights = read_released(path)
        check_released(RELEASED[name], weights, path)
        return weights.sha256
    from prod9.measures.perceptual import check_perceptual

    check_perceptual(name, path)
    return sha256(path)


def _what(path: Path) -> str:
    return "a folder" if path.is_dir() else "no such file"


def _import_network(
    entry: "Released", file: Path, output_dir: str | None, autoencoder: Path | None, diffusion: Path | None
) -> Path:
    from prod9.models.checkpoint_manager import CheckpointManager
    from prod9.models.released_weights import import_released

    vae = base = None
    if autoencoder is not None:
        vae = CheckpointManager.load_autoencoder(autoencoder, stage="maisi_vae")
    if diffusion is not None:
        base = CheckpointManager.load_diffusion(diffusion, schedule=str(entry.schedule))
    folder = Path(output_dir or Path("weights") / entry.name)
    return import_released(entry, file, folder, autoencoder=vae, base=base)


def _copy_feature_network(name: str, file: Path, digest: str) -> Path:
    import os

    from prod9.files import atomic_write

    own = os.environ.get("PROD9_WEIGHTS_DIR")
    if not own:
        raise ConfigError(
            f"PROD9_WEIGHTS_DIR: expected the folder that {name} is to be kept in, got nothing; set it."
        )
    target = expand(own) / _known()[name].files[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        shutil.copyfile(file, temporary)
    with atomic_write(target.with_name(target.name + ".sha256")) as temporary:
        Path(temporary).write_text(f"{digest}  {target.name}\n", encoding="ascii")
    return target
