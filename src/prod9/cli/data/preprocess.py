"""``prod9 data preprocess`` and ``prod9 data to-native``: from a clinic's scans to the models' space, and back."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prod9.cli.data.check import LayoutOption, counting
from prod9.cli.front.after import tell_merge, tell_next
from prod9.cli.front.spacing import SPACING, side_of
from prod9.cli.parts.option import PartOption, chosen_part
from prod9.cli.parts.record import CASES, PartRecord, plan_of, require_same_count
from prod9.cli.shared import (
    FAILED,
    DebugOption,
    JsonOption,
    OverwriteOption,
    console,
    print_error,
    print_json,
    resumable,
)
from prod9.errors import ConfigError, DataError
from prod9.system.wording import plural

if TYPE_CHECKING:
    from prod9.data.registration.cohort import Preprocessed

SIDES = (0.5, 8.0)
"""Sides of the voxels of the results, in mm."""


def checked_cube(value: str) -> str:
    """Refuse (usage error) what is no side of such a voxel."""
    side_of(value, sides=SIDES)
    return value


def preprocess(
    root: Annotated[Path, typer.Argument(metavar="IN", help="Folder with cases, or a list of them.")],
    output_dir: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the results; made if missing.")
    ],
    strip_with: Annotated[
        str | None,
        typer.Option(
            "--strip-with",
            metavar="COMMAND",
            help="Program that finds the brain, such as 'mri_synthstrip -i {in} -m {mask}'.",
        ),
    ] = None,
    brain_mask: Annotated[
        str | None,
        typer.Option(
            "--brain-mask",
            metavar="FILE",
            help="Brain mask of the reference scan; {case} stands for the case.",
        ),
    ] = None,
    no_strip: Annotated[
        bool, typer.Option("--no-strip", help="The scans have no skull, or are to keep it.")
    ] = False,
    atlas: Annotated[
        str, typer.Option("--atlas", metavar="mni152|FILE", help="Atlas without skull, e.g. a file of SRI24.")
    ] = "mni152",
    spacing: Annotated[
        str,
        typer.Option(
            "--spacing",
            metavar=SPACING,
            callback=checked_cube,
            help="Side of a voxel of the results in mm, 0.5 to 8.",
        ),
    ] = "1",
    modality: Annotated[
        list[str] | None,
        typer.Option(
            "--modality",
            metavar="NAME",
            help="Modality that every case needs; repeatable. [all that every case has]",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference-scan",
            metavar="MODALITY",
            help="Scan that the others are registered to. [T1ce, else T1]",
        ),
    ] = None,
    seg_on: Annotated[
        str | None,
        typer.Option(
            "--seg-on",
            metavar="MODALITY",
            help="Scan that segmentations are drawn on. [that with their voxels]",
        ),
    ] = None,
    layout: LayoutOption = "auto",
    num_workers: Annotated[int, typer.Option("--workers", "-j", min=1, help="Cases at a time.")] = 1,
    part: PartOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Register the scans of each case to each other and to an atlas, and take off the skull.

    IN holds NIfTI of any orientation and voxel size. OUT gets a folder a case, `CASE/CASE-t1n.nii.gz` …, with every
    transform, and one page of pictures. Cases that are done are kept, so an interrupted run goes on where it stopped.
    A case that fails is named, leaves no files, and makes the exit code 1. With --part the work is divided; join the
    parts with `prod9 merge OUT`.
    """
    from prod9.data.registration.stripping import Stripping

    side_mm = side_of(spacing, sides=SIDES)
    stripping = Stripping.of_options(brain_mask=brain_mask, strip_with=strip_with, no_strip=no_strip)
    work = chosen_part(part)
    cases = _cases(root, output_dir, layout, modality)
    if stripping.mask is not None and "{case}" not in stripping.mask and len(cases) > 1:
        raise ConfigError(
            f"--brain-mask: expected a name with {{case}} for {plural(cases, 'case')}, got {stripping.mask}; write it "
            "as 'masks/{case}_mask.nii.gz'."
        )
    from prod9.data.registration.atlas import load_atlas
    from prod9.data.registration.case import Settings
    from prod9.data.registration.cohort import preprocess as run
    from prod9.files import check_writable

    settings = Settings(
        atlas=load_atlas(atlas, spacing_mm=side_mm),
        stripping=stripping,
        reference=reference,
        seg_on=seg_on,
        spacing_mm=side_mm,
    )
    check_writable(output_dir)
    require_same_count(output_dir, work)
    mine = [case for number, case in enumerate(cases) if work.owns(number)]
    names = [case.case_id for case in cases]
    record = PartRecord(
        part=str(work),
        kind=CASES,
        settings=settings.describe(),
        total=len(names),
        plan=plan_of(names),
        names=[case.case_id for case in mine],
    )
    folder = work.folder(output_dir)
    hint = "Stopped; complete cases are kept, and the same command goes on from here."
    with resumable(hint), counting("Preprocessing cases") as count:
        done = run(
            mine,
            folder,
            settings,
            num_workers=num_workers,
            progress=count,
            merged=None if work.is_all else output_dir,
            begun=None if work.is_all else partial(record.write, folder),
        )
    _report(done, as_json)
    if not as_json:
        tell_next("prod9", "data", "check", output_dir) if work.is_all else tell_merge(output_dir)


def _report(done: "Preprocessed", as_json: bool) -> None:
    """Print what was made, and end with the exit code of a failure if a case failed."""
    if as_json:
        print_json(
            {
                "output_dir": str(done.root),
                "made": list(done.made),
                "kept": list(done.kept),
                "failed": done.failures,
                "page": str(done.page),
            }
        )
    else:
        console.print(f"{plural(done.made, 'case')} made, {len(done.kept)} kept: {done.root}")
        console.print(f"Look at them: {done.page}")
    for message in done.failures.values():
        print_error(message)
    if done.failures:
        raise typer.Exit(FAILED)


def to_native(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", help="Volume in the space of a preprocessed case.")
    ],
    case: Annotated[
        Path, typer.Option("--case", metavar="DIR", help="Folder of that case, from `prod9 data preprocess`.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="File to write, .nii.gz or .nii.")],
    scan: Annotated[
        str | None,
        typer.Option(
            "--scan", metavar="MODALITY", help="Scan of the case whose voxels it gets. [the reference]"
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind", metavar="auto|image|labels", help="Labels keep their values: the nearest voxel decides."
        ),
    ] = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Bring a volume made from a preprocessed case back to the voxels of the scan that the case came from.

    It may be anything that lies in the space of the case: a translation, a sample, a segmentation, on any grid.
    """
    from prod9.data.registration.native import KINDS, Kind
    from prod9.data.registration.native import to_native as run

    kinds: dict[str, Kind] = {name: name for name in KINDS}
    if kind not in kinds:
        raise ConfigError(f"--kind: expected {', '.join(KINDS)}, got {kind!r}; choose one.")
    used = run(result, output, case=case, scan=scan, kind=kinds[kind], overwrite=overwrite)
    if as_json:
        print_json({"output": str(output), "scan": used})
    else:
        console.print(f"On the voxels of {used}: {output}")


def _cases(root: Path, output_dir: Path, layout: str, modality: list[str] | None) -> list:
    """Return the cases to preprocess, refusing a dataset that is not NIfTI, or that would be written into."""
    from prod9.data.layouts.find import find_cases, scan_dataset
    from prod9.data.layouts.scan import foreign_files, is_dir

    if is_dir(root) and output_dir.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"OUT: expected a folder outside {root}, which is never written to, got {output_dir}; choose another."
        )
    dicom = (
        [path for path in foreign_files(root) if path.suffix.lower() in (".dcm", ".ima")]
        if is_dir(root)
        else []
    )
    if dicom:
        raise DataError(
            f"{root}: expected NIfTI, got DICOM ({dicom[0].name}), which prod9 does not read; convert it with "
            "dcm2niix, and give the folder of the results."
        )
    dataset = scan_dataset(root, layout=layout)
    every = [set(case.images) for case in dataset.cases]
    common = [
        name for name in (dataset.cases[0].images if every else ()) if all(name in own for own in every)
    ]
    if every and not (modality or common):
        raise DataError(
            f"{root}: expected a modality that every case has, got none; name those to use with --modality."
        )
    return find_cases(root, layout=layout, modalities=modality or common or ("T1",))
