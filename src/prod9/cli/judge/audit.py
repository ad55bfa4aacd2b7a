"""``prod9 audit``: whether generated volumes are copies of training patients."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.judge.reporting import reporting
from prod9.cli.shared import FAILED, DebugOption, DeviceOption, JsonOption, console, messages, new_app
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.system.wording import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prod9.evaluation.audit.embeddings import Embedding, VoxelEmbedding
    from prod9.evaluation.audit.volumes import Audit, AuditSets
    from prod9.evaluation.sets.volume_sets import BadFiles, Entry

_SHOWN = 10

app = new_app("Find copies of training patients among generated volumes.")


@app.command()
def audit(
    generated: Annotated[
        Path, typer.Option("--generated", metavar="DIR", help="Folder of generated volumes.")
    ],
    train: Annotated[
        Path | None, typer.Option("--train", metavar="DIR", help="Folder of the training cases.")
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option("--heldout", metavar="DIR", help="Folder of cases that the model never saw."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Instead of both: a run, whose data and split tell who was trained on.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="With --run: where its data lie now.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="RUN|CHECKPOINT|EXPORT",
            help="Compare latents too, of this run's autoencoder; with --run its own by default.",
        ),
    ] = None,
    voxels_only: Annotated[
        bool, typer.Option("--voxels-only", help="Compare voxels alone: faster, needs no model.")
    ] = False,
    modality: Annotated[
        list[str] | None, typer.Option("--modality", help="Compare only these; repeatable.")
    ] = None,
    false_alarms: Annotated[
        float,
        typer.Option(
            "--false-alarms", min=0.001, max=0.5, help="Share of honest volumes that may be suspect."
        ),
    ] = 0.05,
    max_share: Annotated[
        float,
        typer.Option("--max-share", min=0.0, max=1.0, help="Exit with 1 when more than this is suspect."),
    ] = 0.1,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave files that cannot be read out, and list them.")
    ] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "-o", metavar="DIR", help="Where to write; default RUN/audit or outputs/audit."
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare every generated volume with its nearest training and its nearest held-out volume.

    Mirrored, shifted, rescaled and noisy copies are found as well. Writes audit.json, and
    nearest.png with the nearest pairs. The exit code is 1 when more than --max-share of the volumes is suspect.
    """
    _require_one_source(train, heldout, run, data)
    output_dir = output_dir or (run / "audit" if run is not None else Path("outputs/audit"))
    from prod9.files import check_writable

    check_writable(output_dir)
    from prod9.evaluation.audit.sets import sets_of_folders, sets_of_run
    from prod9.evaluation.audit.volumes import PICTURE
    from prod9.evaluation.sets.volume_sets import BadFiles

    bad = BadFiles(skip=skip_bad)
    if run is not None:
        sets = sets_of_run(run, generated, data=data, modalities=modality or (), bad=bad)
    else:
        assert train is not None
        assert heldout is not None
        sets = sets_of_folders(train, heldout, generated, modalities=modality or (), bad=bad)
    source = None if voxels_only else model or (str(run) if run is not None else None)
    result, voxels = _audit(sets, source, device, false_alarms, max_share, bad)
    # The verdict first: pictures take their time, and may be cut off.
    result.write_verdict(output_dir)
    if as_json:
        shared.print_json(result.to_dict())
    else:
        _print(result, output_dir)
    result.write_pictures(output_dir / PICTURE, voxels)
    if not result.passed:
        raise typer.Exit(FAILED)


def _require_one_source(
    train: Path | None, heldout: Path | None, run: Path | None, data: Path | None
) -> None:
    if run is not None and (train is not None or heldout is not None):
        raise ConfigError("--run: expected it alone or --train with --heldout, got both; leave one out.")
    if run is None and data is not None:
        raise ConfigError("--data: expected a --run whose data lie there, got none; name the run too.")
    if run is None and heldout is None:
        raise ConfigError(
            "--heldout: expected cases that the model never saw, since only they tell how near an honest volume comes "
            "to the training set; got none. Name their folder, or the --run whose test patients they are."
        )
    if run is None and train is None:
        raise ConfigError("--train: expected the training cases or a --run, got neither; name one.")


def _audit(
    sets: "AuditSets", model: str | None, device: str, false_alarms: float, max_share: float, bad: "BadFiles"
) -> tuple["Audit", "VoxelEmbedding"]:
    from prod9.evaluation.audit.embeddings import VoxelEmbedding
    from prod9.evaluation.audit.volumes import run_audit

    with reporting() as report:
        voxels = VoxelEmbedding.fit(_readable(sets.train, bad))
        embeddings: list[Embedding] = [voxels] if model is None else [voxels, _latents(model, device)]
        result = run_audit(
            sets,
            embeddings,
            false_alarms=false_alarms,
            max_share=max_share,
            bad=bad,
            progress=lambda done, total: report("Comparing", done, total),
        )
    return result, voxels


def _readable(entries: "Sequence[Entry]", bad: Any) -> Any:
    """Yield the volumes of ``entries``; what cannot be read is met again, and then listed, by the audit."""
    from prod9.errors import DataError
    from prod9.volumes import read

    for entry in entries:
        try:
            yield read(entry.path, channel=entry.channel)
        except DataError as error:
            if not bad.skip:
                bad.report(entry, error)


def _latents(model: str, device: str) -> "Embedding":
    from prod9.evaluation.audit.embeddings import LatentEmbedding
    from prod9.evaluation.judges.features import AutoencoderFeatures
    from prod9.evaluation.sets.volume_sets import Preparation
    from prod9.models.checkpoint_manager import CheckpointManager

    where = torch_device(device)
    opened = CheckpointManager.open(model)
    stage = opened.header["stage"]
    loaded: Any
    if stage == "autoencoder":
        loaded = CheckpointManager.load_autoencoder(opened.path, device=where)
    elif stage == "maisi_vae":
        loaded = CheckpointManager.load_autoencoder(opened.path, stage="maisi_vae", device=where)
    elif stage.startswith("maisi"):
        loaded = CheckpointManager.load_vae(opened, device=where)
    else:
        loaded = CheckpointManager.load_upstream(opened, device=where)
    data = loaded.header["data"]
    preparation = Preparation(tuple(data["grid"]), data["spacing"] and tuple(data["spacing"]))
    return LatentEmbedding(AutoencoderFeatures(loaded.network), preparation, device=where)


def _print(result: "Audit", folder: Path) -> None:
    content = result.to_dict()
    for name, part in content["sets"].items():
        console.print(
            f"{name:>10}  {plural(part['volumes'], 'volume')} of {plural(part['patients'], 'patient')}",
        )
    for row in content["embeddings"]:
        console.print(
            f"{row['name']}: relative distance {row['median_generated']:.2f} (held-out patients "
            f"{row['median_held_out']:.2f}), suspect below {row['threshold']:.2f}, authenticity "
            f"{row['authenticity']:.2f}",
        )
    for suspect in result.suspects[:_SHOWN]:
        distance = min(suspect.distances.values())
        console.print(
            f"{distance:10.2f}  {suspect.generated.path.name} resembles {suspect.train.path.name}",
        )
    if len(result.suspects) > _SHOWN:
        console.print(f"… and {len(result.suspects) - _SHOWN} more in {folder}")
    for gap in result.gaps:
        messages.print(f"Not looked at: {gap}")
    for item in result.left_out:
        if item["asked"]:
            messages.print(f"Note: {len(item['files'])} volumes left out: {item['reason']}")
    failed = "failed" if result.share > result.max_share else "failed: not everything was looked at"
    verdict = (
        f"{len(result.suspects)} of {len(result.sets.generated)} suspect ({result.share:.1%}; limit "
        f"{result.max_share:.1%}): {'passed' if result.passed else failed}. {folder}"
    )
    (console if result.passed else messages).print(verdict)
