"""``prod9 evaluate``: what generated volumes are worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prod9.cli import shared
from prod9.cli.judge.reporting import reporting
from prod9.cli.shared import DebugOption, DeviceOption, JsonOption, OverwriteOption, new_app
from prod9.devices import torch_device
from prod9.errors import ConfigError

if TYPE_CHECKING:
    from prod9.evaluation.score_table import Evaluation

app = new_app("Measure generated volumes against real ones.")

FILE = "evaluation.json"
Grid = tuple[int, int, int]
Spacing = tuple[float, float, float]
RealArgument = Annotated[
    Path, typer.Argument(metavar="REAL", help="Folder of real volumes, of any known layout or none.")
]
ModalityOption = Annotated[
    list[str] | None, typer.Option("--modality", metavar="NAME", help="Only this one; repeatable. [all]")
]
SplitOption = Annotated[
    Path | None,
    typer.Option("--split", metavar="FILE", help="A run's split.json: compare with its test patients alone."),
]
LayoutOption = Annotated[
    str, typer.Option("--layout", metavar="NAME", help="How real folders are laid out, if it is not found.")
]
LabelSchemeOption = Annotated[
    str,
    typer.Option("--label-scheme", metavar="NAME", help="What the labels of real segmentations mean."),
]
EvaluationDirOption = Annotated[
    Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Where tables and JSON go.")
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="List files that cannot be read and go on without them.")
]
SpacingOption = Annotated[
    Spacing | None, typer.Option("--spacing", metavar="X Y Z", help="Resample all volumes to this, in mm.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of all draws.")]
ReplicatesOption = Annotated[
    int, typer.Option("--replicates", min=0, help="Bootstrap samples behind an interval; 0 for none.")
]


@app.command("images")
def images(
    real: RealArgument,
    generated: Annotated[Path, typer.Argument(metavar="GENERATED", help="Folder of generated volumes.")],
    output_dir: EvaluationDirOption = Path("evaluation"),
    paired: Annotated[
        bool, typer.Option("--paired", help="Also compare volumes of the same case and modality.")
    ] = False,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring registered pairs to the real volume's voxels.")
    ] = False,
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            "--extractor",
            "-x",
            metavar="NAME",
            help="random, autoencoder, classifier or file:PATH; repeatable. [random]",
        ),
    ] = None,
    autoencoder: Annotated[
        str | None,
        typer.Option("--autoencoder", metavar="PATH", help="Run, checkpoint or export of that extractor."),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            "--classifier", metavar="FILE", help="A classifier.safetensors of an earlier evaluation."
        ),
    ] = None,
    classifier_steps: Annotated[
        int, typer.Option("--classifier-steps", min=1, help="Training steps of the classifier.")
    ] = 400,
    inception_score: Annotated[
        bool, typer.Option("--inception-score", help="Needs a classifier of the same labels.")
    ] = False,
    modality: ModalityOption = None,
    split: SplitOption = None,
    layout: LayoutOption = "auto",
    label_scheme: LabelSchemeOption = "auto",
    grid: Annotated[
        Grid | None,
        typer.Option("--grid", metavar="H W D", help="Voxels to compare on. [the generated volumes']"),
    ] = None,
    spacing: SpacingOption = None,
    skip_bad: SkipBadOption = False,
    replicates: ReplicatesOption = 100,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare a folder of generated volumes with a folder of real ones.

    Distances of distributions, diversity and appearance, each beside what real volumes score against each
    other; with `--paired` also PSNR, SSIM, MS-SSIM and more over whole volume, brain, tumour and healthy part.
    """
    _check_folder(output_dir, overwrite)
    from prod9.evaluation.images import ImageSettings, check_settings, evaluate_images
    from prod9.evaluation.judges.judge import FILE as CLASSIFIER
    from prod9.evaluation.sets.kept_pairs import FILE as KEPT

    settings = ImageSettings(
        extractors=tuple(extractor or ["random"]),
        autoencoder=autoencoder,
        classifier=classifier,
        classifier_steps=classifier_steps,
        inception_score=inception_score,
        paired=paired,
        resample=resample,
        modalities=tuple(modality or ()),
        split=None if split is None else str(split),
        layout=layout,
        label_scheme=label_scheme,
        grid=grid,
        spacing=spacing,
        skip_bad=skip_bad,
        replicates=replicates,
        seed=seed,
    )
    check_settings(settings)
    kept = output_dir / KEPT
    again = "Scores of pairs that were done are kept; the same command goes on from here."
    with shared.resumable(again), reporting() as report:
        result = evaluate_images(
            real, generated, settings, device=torch_device(device), report=report, keep=kept
        )
    if result.judge is not None:
        result.judge.save(output_dir / CLASSIFIER)
    _finish(result.evaluation, output_dir, as_json)
    kept.unlink(missing_ok=True)


@app.command("utility")
def utility(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="Folder of real patients with segmentations.")],
    synthetic: Annotated[
        Path, typer.Argument(metavar="SYNTHETIC", help="The same of `prod9 generate patients`.")
    ],
    output_dir: EvaluationDirOption = Path("evaluation_utility"),
    split: Annotated[
        Path | None,
        typer.Option("--split", metavar="FILE", help="A run's split.json: train on train, test on test."),
    ] = None,
    heldout: Annotated[
        Path | None, typer.Option("--heldout", metavar="DIR", help="Real patients to test on instead.")
    ] = None,
    modality: ModalityOption = None,
    layout: LayoutOption = "auto",
    label_scheme: LabelSchemeOption = "auto",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps of each network.")] = 400,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Networks trained on each set.")] = 3,
    grid: Annotated[
        Grid | None,
        typer.Option("--grid", metavar="H W D", help="Voxels of a volume. [the synthetic patients']"),
    ] = None,
    spacing: SpacingOption = None,
    skip_bad: SkipBadOption = False,
    replicates: ReplicatesOption = 1000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train the same small segmenter on real, on synthetic and on both patients, and test it on real ones.

    Dice of whole tumour, tumour core and enhancing tumour, with intervals over patients and seeds.
    """
    if split is not None and heldout is not None:
        raise ConfigError("expected --split FILE or --heldout DIR, got both; leave one out")
    _check_folder(output_dir, overwrite)
    from prod9.evaluation.utility import UtilitySettings, evaluate_utility

    chosen = {} if not modality else {"modalities": tuple(modality)}
    settings = UtilitySettings(
        split=None if split is None else str(split),
        heldout=None if heldout is None else str(heldout),
        layout=layout,
        label_scheme=label_scheme,
        grid=grid,
        spacing=spacing,
        steps=steps,
        seeds=seeds,
        seed=seed,
        replicates=replicates,
        skip_bad=skip_bad,
        **chosen,
    )
    with reporting() as report:
        evaluation = evaluate_utility(real, synthetic, settings, device=torch_device(device), report=report)
    _finish(evaluation, output_dir, as_json)


def _check_folder(output_dir: Path, overwrite: bool) -> None:
    from prod9.files import check_writable

    if (output_dir / FILE).exists() and not overwrite:
        raise ConfigError(
            f"{output_dir / FILE}: exists already; choose another --output-dir, or replace it with --overwrite."
        )
    check_writable(output_dir)


def _finish(evaluation: "Evaluation", output_dir: Path, as_json: bool) -> None:
    files = evaluation.write(output_dir)
    for item in evaluation.skipped:
        shared.messages.print(f"Skipped: {item.reason}")
    for item in evaluation.left_out:
        shared.messages.print(f"Note: {item.sentence()}")
    for warning in evaluation.warnings:
        shared.messages.print(f"Warning: {warning}")
    if as_json:
        shared.print_json(evaluation.to_dict())
        return
    from prod9.cli.judge.score_tables import print_scores

    print_scores(evaluation)
    shared.console.print(f"Written: {', '.join(str(file) for file in files)}")
