"""``prod9 data check`` and ``prod9 data info``: look at a dataset before a long training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prod9.cli.front.after import tell_next
from prod9.cli.front.places import one_file
from prod9.cli.shared import FAILED, DebugOption, JsonOption, console, messages, print_json, progress
from prod9.errors import ConfigError
from prod9.system.progress import Progress
from prod9.system.shell import split_line
from prod9.system.wording import plural

if TYPE_CHECKING:
    from prod9.data.checking.medmnist import MedMNIST3DReport
    from prod9.data.checking.report import Report

_SHOWN = 20
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}

RootArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="Folder with cases, a .csv, .tsv or .json list of cases, or a MedMNIST3D .npz file.",
    ),
]
LayoutOption = Annotated[
    str, typer.Option("--layout", metavar="NAME", help="Layout, if `auto` is wrong (data.layout).")
]
SchemeOption = Annotated[
    str,
    typer.Option(
        "--label-scheme",
        metavar="NAME|TABLE",
        help="Meaning of the label values, e.g. brats2015 or whole_tumor (data.label_scheme).",
    ),
]
ModalityOption = Annotated[
    list[str] | None,
    typer.Option("--modality", metavar="NAME", help="Modality that every case needs; repeatable."),
]
WorkersOption = Annotated[int, typer.Option("--workers", "-j", min=1, help="Files read at a time.")]


def check(
    root: RootArgument,
    layout: LayoutOption = "auto",
    label_scheme: SchemeOption = "auto",
    modality: ModalityOption = None,
    split: Annotated[
        Path | None,
        typer.Option("--split", metavar="FILE", help="Also compare the patients with a split.json."),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every voxel: checksums, NaN, intensities, labels.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with pictures; implies --deep."),
    ] = None,
    workers: WorkersOption = 1,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a dataset: what it holds, what is wrong, and how to repair it.

    Without `--deep`, only headers are read: a thousand cases in seconds. Nothing in the folder is changed. The exit
    code is 1 if there is an error, which would stop training or make it useless.
    """
    _keep_out(html, root, "--html")
    deep = deep or html is not None
    report = _checked(root, layout, label_scheme, modality, split=split, deep=deep, workers=workers)
    if html is not None:
        from prod9.data.checking.page import write_page

        write_page(html, report)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)
        if html is not None:
            console.print(f"Page: {html}")
    if not as_json:
        for _, line in report.next_steps():
            tell_next(*split_line(line))
    if not report.ok:
        raise typer.Exit(FAILED)


def info(
    root: RootArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="File for the fingerprint, which `prod9 plan` takes."),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "-o", metavar="DIR", help="Instead of --output: folder of fingerprint.json."
        ),
    ] = None,
    layout: LayoutOption = "auto",
    label_scheme: SchemeOption = "auto",
    modality: ModalityOption = None,
    workers: WorkersOption = 1,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Summarise a dataset: voxel sizes, sizes of heads, intensities, lesions, and a grid for them.

    Every voxel is read. A dataset with errors is refused; see `prod9 data check --deep`.
    """
    if output is not None or output_dir is not None:
        output = one_file(output, output_dir, "fingerprint.json")
    _keep_out(output, root, "--output-dir" if output_dir is not None else "--output")
    from prod9.data.checking.fingerprint import fingerprint, write_fingerprint
    from prod9.data.checking.medmnist import MedMNIST3DReport, fingerprint_medmnist3d

    report = _checked(root, layout, label_scheme, modality, split=None, deep=True, workers=workers)
    of_file = isinstance(report, MedMNIST3DReport)
    content = fingerprint_medmnist3d(report) if of_file else fingerprint(report)
    if output is not None:
        write_fingerprint(output, content)
    if as_json:
        print_json(content)
        return
    _print(report)
    if "head_mm" in content:
        boxes = content["head_mm"]
        median, largest = (" × ".join(f"{side:g}" for side in boxes[name]) for name in ("median", "largest"))
        console.print(f"Heads: median {median} mm, largest {largest} mm.")
    spacing = f"data.spacing {content['spacing_mm']}, " if content["spacing_mm"] else ""
    console.print(f"Suggested: {spacing}data.grid {content['grid']}.")
    if output is not None:
        console.print(f"Fingerprint: {output}")
    tell_next("prod9", "plan", output or root, "-o", "plan")


def _checked(
    root: Path,
    layout: str,
    label_scheme: str,
    modality: list[str] | None,
    *,
    split: Path | None,
    deep: bool,
    workers: int,
) -> "Report | MedMNIST3DReport":
    if is_medmnist3d(root):
        given = {
            "--layout": layout != "auto",
            "--label-scheme": label_scheme != "auto",
            "--modality": bool(modality),
            "--split": split is not None,
        }
        wrong = [option for option, is_given in given.items() if is_given]
        if wrong:
            raise ConfigError(
                f"{wrong[0]}: expected a folder or a list, got {root}, which defines all of this; leave it out."
            )
        return checked_medmnist3d(root, deep=deep)
    from prod9.data.checking.report import check_dataset

    with counting("Reading volumes" if deep else "Reading headers") as count:
        return check_dataset(
            root,
            layout=layout,
            label_scheme=label_scheme,
            modalities=modality or (),
            split=split,
            deep=deep,
            num_workers=workers,
            progress=count,
        )


@contextmanager
def counting(title: str) -> Iterator[Progress]:
    """Show a bar of progress inside the block, and yield the callback (done, total) that moves it."""
    with progress() as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def is_medmnist3d(root: Path) -> bool:
    """Return whether ``root`` has the suffix of a MedMNIST3D file; a folder of such files is refused."""
    from prod9.data.layouts.scan import Walk, is_dir

    if is_dir(root):
        files = sorted(path.name for path in root.glob("*mnist3d*.npz"))
        if files and next(Walk().volumes(root), None) is None:
            raise ConfigError(
                f"DIR: expected one MedMNIST3D file, got {root} with {', '.join(files)}; choose one of them."
            )
    return root.suffix == ".npz"


def checked_medmnist3d(path: Path, *, deep: bool) -> "MedMNIST3DReport":
    """Check a MedMNIST3D file with a progress bar."""
    from prod9.config.data import MEDMNIST3D_CLASSES
    from prod9.data.checking.medmnist import check_medmnist3d

    with counting("Reading samples" if deep else "Reading labels") as count:
        return check_medmnist3d(path, classes=MEDMNIST3D_CLASSES, deep=deep, progress=count)


def _keep_out(path: Path | None, root: Path, option: str) -> None:
    """Refuse to write into the dataset."""
    from prod9.data.layouts.scan import is_dir

    if path is not None and is_dir(root) and path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"{option}: expected a file outside {root}, which is never written to, got {path}; choose another."
        )


def _print(report: "Report | MedMNIST3DReport") -> None:
    from prod9.data.checking.summary import facts_of

    facts = report.to_dict()
    for name, text in facts_of(facts):
        console.print(f"{name:>13}  {text}")
    for kind, row in facts["intensities"].items():
        values = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        console.print(f"{kind:>13}  {values}")
    for label, row in facts["labels"].items():
        console.print(
            f"{'label ' + label:>13}  in {plural(int(row['cases']), 'case')}, median {row['median_ml']:.1f} ml",
        )
    for finding in report.findings[:_SHOWN]:
        console.print(f"{finding.level:>13}", style=_COLOURS[finding.level], end="  ")
        console.print(finding.message)
    if len(report.findings) > _SHOWN:
        console.print(f"… and {len(report.findings) - _SHOWN} more; --json lists all.")
    read = "Every voxel was read." if facts["deep"] else "Headers only; --deep reads the voxels too."
    verdict = f"{plural(facts['errors'], 'error')}, {plural(facts['warnings'], 'warning')}. {read}"
    (console if report.ok else messages).print(verdict)
