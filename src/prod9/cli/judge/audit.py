"""``prod9 audit``: whether generated volumes are copies of training patients."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prod9.cli import shared
from prod9.cli.front.after import tell_after_scores
from prod9.cli.judge.options import AuditedOptions, ModalityOption, RunOptions, SkipBadOption, grouped
from prod9.cli.judge.reporting import reporting
from prod9.cli.shared import FAILED, console, errors, messages, new_app
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.system.wording import plural

if TYPE_CHECKING:
    from prod9.evaluation.audit.volumes import Audit, AuditSets
    from prod9.evaluation.sets.volume_sets import BadFiles

_SHOWN = 10

app = new_app("Find copies of training patients among generated volumes.")


@app.command(
    example="prod9 audit --generated outputs/demo/starter/volumes --run outputs/demo/starter/stage2_label"
)
@grouped
def audit(
    generated: Annotated[
        Path, typer.Option("--generated", metavar="DIR", help="Folder of generated volumes.")
    ],
    audited: AuditedOptions,
    options: RunOptions,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="Compare latents too, of this run's autoencoder; with --run its own by default.",
        ),
    ] = None,
    voxels_only: Annotated[
        bool, typer.Option("--voxels-only", help="Compare voxels only: faster, needs no model.")
    ] = False,
    modality: ModalityOption = None,
    false_alarms: Annotated[
        float,
        typer.Option(
            "--false-alarms", min=0.001, max=0.5, help="Share of honest volumes that may be suspect."
        ),
    ] = 0.05,
    max_share: Annotated[
        float,
        typer.Option(
            "--max-share", min=0.0, max=1.0, help="Exit with 1 when a larger share than this is suspect."
        ),
    ] = 0.1,
    skip_bad: SkipBadOption = False,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "-o", metavar="DIR", help="Where to write; default RUN/audit or outputs/audit."
        ),
    ] = None,
) -> None:
    """Compare every generated volume with its nearest training and its nearest held-out volume.

    Mirrored, shifted, rescaled and noisy copies are found as well. Writes audit.json, and
    nearest.png with the nearest pairs. The exit code is 1 when more than --max-share of the volumes is suspect.
    """
    _require_one_source(audited)
    run = audited.run
    output_dir = output_dir or (run / "audit" if run is not None else Path("outputs/audit"))
    from prod9.files import check_writable

    check_writable(output_dir)
    from prod9.evaluation.audit.embeddings import Embedding, VoxelEmbedding, load_latents
    from prod9.evaluation.audit.volumes import PICTURE, readable, run_audit
    from prod9.evaluation.sets.volume_sets import BadFiles

    bad = BadFiles(skip=skip_bad)
    sets = _sets(audited, generated, tuple(modality or ()), bad)
    source = None if voxels_only else model or (str(run) if run is not None else None)
    with reporting() as report:
        voxels = VoxelEmbedding.fit(readable(sets.train, bad))
        embeddings: list[Embedding] = [voxels]
        if source is not None:
            embeddings.append(load_latents(source, device=torch_device(options.device)))
        result = run_audit(
            sets,
            embeddings,
            false_alarms=false_alarms,
            max_share=max_share,
            bad=bad,
            progress=lambda done, total: report("Comparing", done, total),
        )
    # The verdict first: pictures take some time, and may be interrupted.
    result.write_verdict(output_dir)
    if options.as_json:
        shared.print_json(result.to_dict())
    else:
        _print(result, output_dir)
    result.write_pictures(output_dir / PICTURE, voxels)
    if not options.as_json:
        tell_after_scores(generated, output_dir)
    if not result.passed:
        raise typer.Exit(FAILED)


def _require_one_source(audited: AuditedOptions) -> None:
    folders = audited.train, audited.heldout
    if audited.run is not None:
        if folders != (None, None):
            raise ConfigError("--run: expected it alone or --train with --heldout, got both; leave one out.")
        return
    if audited.data is not None:
        raise ConfigError("--data: expected a --run whose data lie there, got none; name the run too.")
    if audited.heldout is None:
        raise ConfigError(
            "--heldout: expected cases that the model never saw, got none: only they show how near an honest volume "
            "comes to the training set. Name their folder, or the --run whose test patients they are."
        )
    if audited.train is None:
        raise ConfigError("--train: expected the training cases or a --run, got neither; name one.")


def _sets(
    audited: AuditedOptions, generated: Path, modalities: tuple[str, ...], bad: "BadFiles"
) -> "AuditSets":
    from prod9.evaluation.audit.sets import sets_of_folders, sets_of_run

    if audited.run is not None:
        return sets_of_run(audited.run, generated, data=audited.data, modalities=modalities, bad=bad)
    assert audited.train is not None
    assert audited.heldout is not None
    return sets_of_folders(audited.train, audited.heldout, generated, modalities=modalities, bad=bad)


def _print(result: "Audit", folder: Path) -> None:
    content = result.to_dict()
    for name, part in content["sets"].items():
        console.print(
            f"{name:>10}  {plural(part['volumes'], 'volume')} of {plural(part['patients'], 'patient')}"
        )
    for row in content["embeddings"]:
        console.print(
            f"{row['name']}: relative distance {row['median_generated']:.2f} (held-out patients "
            f"{row['median_held_out']:.2f}), suspect below {row['threshold']:.2f}, authenticity "
            f"{row['authenticity']:.2f}"
        )
    for suspect in result.suspects[:_SHOWN]:
        distance = min(suspect.distances.values())
        console.print(f"{distance:10.2f}  {suspect.generated.path.name} resembles {suspect.train.path.name}")
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
    (console if result.passed else errors).print(verdict)
