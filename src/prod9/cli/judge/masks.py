"""``prod9 evaluate masks``: lesion masks against those of training patients."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.data.check import counting
from prod9.cli.front.after import tell_next
from prod9.cli.generate.inputs import find_segmentations
from prod9.cli.shared import FAILED, DebugOption, JsonOption, console, print_error, print_json
from prod9.errors import DataError
from prod9.system.wording import listing, plural


def masks(
    made: Annotated[
        Path, typer.Argument(metavar="MASKS", help="Folder of masks, from `prod9 generate masks`.")
    ],
    training: Annotated[
        Path,
        typer.Option("--training", metavar="DIR", help="Folder of the training patients, scans included."),
    ],
    replicates: Annotated[
        int, typer.Option("--replicates", min=20, help="Random divisions of the training patients per floor.")
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of those.")] = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare lesion masks with training masks: volume, number of pieces, place, and copies.

    Each distance stands beside its floor, the distance of training patients from each other. A mask that overlaps a
    training mask, or its mirror image, by a Dice of 0.9 or more in the box of the brain is a copy; then the exit code
    is 1.
    """
    files, known = find_segmentations([made]), find_segmentations([training])
    from prod9.data.lesions import LesionFile
    from prod9.evaluation.masks import COPY, MEASURES, compare_masks

    real = [LesionFile.of(path) for path in known.values()]
    for one in real:
        if one.scan is None:
            raise DataError(
                f"{one.path}: expected a scan of its case beside it, to know the brain, got none; add it."
            )
    with counting("Measuring masks") as count:
        found = compare_masks(
            [LesionFile.of(path) for path in files.values()],
            real,
            replicates=replicates,
            seed=seed,
            progress=count,
        )
    if as_json:
        print_json(
            {
                **asdict(found),
                "scores": [{**asdict(score), "ratio": score.ratio} for score in found.scores],
                "copies": found.copies,
            }
        )
    else:
        console.print(
            f"{plural(found.num_masks, 'mask')}, {plural(found.num_training, 'training mask')}; floors: median of "
            f"{replicates} divisions, {found.matched} patients on one side."
        )
        for score in found.scores:
            console.print(
                f"{MEASURES[score.measure]:<55}  {score.value:.3f}  floor {score.floor:.3f} (95%: {score.high:.3f})  "
                f"ratio {score.ratio:.2f}"
            )
        if found.empty:
            console.print(f"{plural(found.empty, 'mask')} without a lesion left out: {listing(found.empty)}")
        highest = max(dice for _, dice in found.nearest.values())
        console.print(f"Copies (Dice of {COPY:g} or more): {len(found.copies)}; highest Dice {highest:.2f}.")
    for name, (source, dice) in found.copies.items():
        print_error(
            f"{name}: expected a mask of its own, got a copy of {source} (Dice {dice:.2f}); remove it."
        )
    if found.copies:
        raise typer.Exit(FAILED)
    if not as_json:
        models = ("--model", "LABEL_RUN", "--in-context", "TRANSLATOR_RUN", "--control", "CONTROL_RUN")
        words = ("generate", "patients", "-n", found.num_masks, *models, "--seg", made, "-o", "patients")
        tell_next("prod9", *words, note="patients with these lesions")
