"""``prod9 evaluate``: how good generated volumes are."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.judge.covariates import covariates
from prod9.cli.judge.image_part import describe_image_part
from prod9.cli.judge.masks import masks
from prod9.cli.judge.options import (
    ExtractorOptions,
    GridOption,
    JudgedOptions,
    OutputDirOption,
    ReplicatesOption,
    RunOptions,
    SetOptions,
    TrainedOptions,
    grouped,
)
from prod9.cli.judge.reporting import reporting
from prod9.cli.judge.results import check_folder, finish
from prod9.cli.parts.option import PartOption, chosen_part
from prod9.cli.shared import DebugOption, JsonOption, OverwriteOption, new_app
from prod9.devices import torch_device

if TYPE_CHECKING:
    from prod9.evaluation.score_table import Evaluation

app = new_app("Measure generated volumes against real ones.")
app.command("masks", example="prod9 evaluate masks made --training ~/brats")(masks)
app.command(
    "covariates", example="prod9 evaluate covariates ~/brats made --table patients.csv --split run/split.json"
)(grouped(covariates))
PatientsArgument = Annotated[
    Path, typer.Argument(metavar="REAL", help="Folder of real patients with segmentations.")
]


@app.command("images", example="prod9 evaluate images outputs/demo/data outputs/demo/starter/volumes")
@grouped
def images(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Folder of real volumes, of any known layout or none.")
    ],
    generated: Annotated[Path, typer.Argument(metavar="GENERATED", help="Folder of generated volumes.")],
    extractors: ExtractorOptions,
    sets: SetOptions,
    options: RunOptions,
    output_dir: OutputDirOption = Path("evaluation"),
    paired: Annotated[
        bool, typer.Option("--paired", help="Also compare volumes of the same case and modality.")
    ] = False,
    denoised: Annotated[
        bool,
        typer.Option(
            "--denoised/--no-denoised",
            help="Also compare both sets after denoising them alike; takes longer.",
        ),
    ] = True,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring registered pairs to the real volume's voxels.")
    ] = False,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split", metavar="FILE", help="A run's split.json: compare with its test patients only."
        ),
    ] = None,
    grid: GridOption = None,
    replicates: ReplicatesOption = 100,
    overwrite: OverwriteOption = False,
    part: PartOption = None,
) -> None:
    """Compare a folder of generated volumes with a folder of real ones.

    Distances of distributions, diversity and appearance, each beside the score of real volumes against each other. With
    `--paired` also PSNR, SSIM, MS-SSIM and more over the whole volume, the brain, the tumour and the healthy part. With
    `--part` only features are computed: join them with `prod9 merge OUTPUT_DIR`, then run it without `--part`.
    """
    check_folder(output_dir, overwrite)
    work = chosen_part(part)
    from prod9.evaluation.images import ImageSettings, check_settings, evaluate_images
    from prod9.evaluation.judges.judge import FILE as CLASSIFIER
    from prod9.evaluation.sets.kept_pairs import FILE as KEPT
    from prod9.evaluation.sets.kept_rows import FOLDER

    networks: dict[str, Any] = asdict(extractors)
    settings = ImageSettings(
        extractors=tuple(networks.pop("extractor") or ["random"]),
        denoised=denoised,
        paired=paired,
        resample=resample,
        split=None if split is None else str(split),
        grid=grid,
        replicates=replicates,
        **networks,
        **sets.settings(),
    )
    check_settings(settings)
    if not work.is_all:
        describe_image_part(real, generated, settings, work, output_dir, options)
        return
    kept, features = output_dir / KEPT, output_dir / FOLDER
    again = "The scores of finished pairs are kept; the same command continues from here."
    with shared.resumable(again), reporting() as report:
        result = evaluate_images(
            real,
            generated,
            settings,
            device=torch_device(options.device),
            report=report,
            keep=kept,
            features=features if features.is_dir() else None,
        )
    if result.judge is not None:
        result.judge.save(output_dir / CLASSIFIER)
    finish(result.evaluation, output_dir, options.as_json, real, generated)
    kept.unlink(missing_ok=True)


@app.command("samples", example="prod9 evaluate samples outputs/demo/data made")
@grouped
def samples(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Folder of real patients, of any known layout or none.")
    ],
    sampled: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES", help="A folder of `prod9 generate translate --patient DIR --num-samples N`."
        ),
    ],
    options: JudgedOptions,
    output_dir: OutputDirOption = Path("evaluation_samples"),
    split: Annotated[
        Path | None,
        typer.Option("--split", metavar="FILE", help="A run's split.json: score its test patients only."),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit/--no-fit",
            help="Bring the mean of the samples to the truth's brightness and contrast, the samples with it.",
        ),
    ] = True,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring registered samples to the real volume's voxels.")
    ] = False,
    replicates: ReplicatesOption = 100,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare several samples of each case with the truth: are they as far apart as they are from it?

    Correlation of the samples' spread with the error of their mean, coverage of intervals with a calibration
    curve, their width, CRPS, PSNR and spectra, by modality, with intervals over patients.
    """
    check_folder(output_dir, overwrite)
    from prod9.evaluation.samples.evaluate import SampleSettings, evaluate_samples

    settings = SampleSettings(
        split=None if split is None else str(split),
        fit=fit,
        resample=resample,
        replicates=replicates,
        **options.settings(),
    )
    with reporting() as report:
        evaluation = evaluate_samples(real, sampled, settings, report=report)
    finish(evaluation, output_dir, as_json, real, sampled)


@app.command("control", example="prod9 evaluate control outputs/demo/data steered")
@grouped
def control(
    real: PatientsArgument,
    steered: Annotated[
        Path, typer.Argument(metavar="STEERED", help="A folder of `prod9 generate control --seg`.")
    ],
    sets: SetOptions,
    trained: TrainedOptions,
    options: RunOptions,
    output_dir: OutputDirOption = Path("evaluation_control"),
    autoencoder: Annotated[
        str | None,
        typer.Option(
            "--autoencoder",
            metavar="NAME|PATH",
            help="Also score reconstructions of this run, checkpoint or export.",
        ),
    ] = None,
    grid: GridOption = None,
    replicates: ReplicatesOption = 1000,
    overwrite: OverwriteOption = False,
) -> None:
    """Score the lesions of steered volumes class by class, with segmenters trained on real scans.

    Dice of whole tumour, tumour core and enhancing tumour between what a segmenter of the modality finds and what
    was asked for, beside its Dice in held-out scans and in their reconstructions.
    """
    check_folder(output_dir, overwrite)
    from prod9.evaluation.anatomy.control import ControlSettings, evaluate_control

    settings = ControlSettings(
        autoencoder=autoencoder, grid=grid, replicates=replicates, **trained.settings(), **sets.settings()
    )
    _run(evaluate_control, real, steered, settings, output_dir, options)


@app.command("patients", example="prod9 evaluate patients outputs/demo/data made")
@grouped
def patients(
    real: PatientsArgument,
    made: Annotated[Path, typer.Argument(metavar="MADE", help="A folder of `prod9 generate patients`.")],
    sets: SetOptions,
    trained: TrainedOptions,
    options: RunOptions,
    output_dir: OutputDirOption = Path("evaluation_patients"),
    grid: GridOption = None,
    replicates: ReplicatesOption = 1000,
    overwrite: OverwriteOption = False,
) -> None:
    """Score whether the modalities of a made patient agree: one head with one tumour.

    For every pair of modalities, the Dice between what segmenters of both find, and the mutual information of both,
    beside those of held-out real patients.
    """
    check_folder(output_dir, overwrite)
    from prod9.evaluation.anatomy.agreement import evaluate_patients
    from prod9.evaluation.utility import TrainedSettings

    settings = TrainedSettings(grid=grid, replicates=replicates, **trained.settings(), **sets.settings())
    _run(evaluate_patients, real, made, settings, output_dir, options)


@app.command("utility", example="prod9 evaluate utility outputs/demo/data made")
@grouped
def utility(
    real: PatientsArgument,
    synthetic: Annotated[
        Path, typer.Argument(metavar="SYNTHETIC", help="A folder of `prod9 generate patients`.")
    ],
    sets: SetOptions,
    trained: TrainedOptions,
    options: RunOptions,
    output_dir: OutputDirOption = Path("evaluation_utility"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Networks trained on each set.")] = 3,
    grid: GridOption = None,
    replicates: ReplicatesOption = 1000,
    overwrite: OverwriteOption = False,
) -> None:
    """Train the same small segmenter on real, on synthetic and on both patients, and test it on real ones.

    Dice of whole tumour, tumour core and enhancing tumour, with intervals over patients and seeds. Interrupted, the
    same command goes on with the networks that are left.
    """
    check_folder(output_dir, overwrite)
    from prod9.evaluation.judges.kept_overlaps import FILE as KEPT
    from prod9.evaluation.utility import UtilitySettings, evaluate_utility

    settings = UtilitySettings(
        grid=grid, seeds=seeds, replicates=replicates, **trained.settings(), **sets.settings()
    )
    again = "The networks that are trained are kept; the same command continues from here."
    with shared.resumable(again):
        _run(
            partial(evaluate_utility, keep=output_dir / KEPT), real, synthetic, settings, output_dir, options
        )
    (output_dir / KEPT).unlink(missing_ok=True)


def _run(
    evaluate: "Callable[..., Evaluation]",
    real: Path,
    made: Path,
    settings: object,
    output_dir: Path,
    options: RunOptions,
) -> None:
    """Compare ``made`` with ``real`` by trained networks, and write what came out."""
    with reporting() as report:
        evaluation = evaluate(real, made, settings, device=torch_device(options.device), report=report)
    finish(evaluation, output_dir, options.as_json, real, made)
