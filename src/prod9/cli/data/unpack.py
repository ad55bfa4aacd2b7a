"""``prod9 data unpack``: samples of a MedMNIST3D file as volumes, with the foreground that stage 3 learns from."""

from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.shared import DebugOption, JsonOption, OverwriteOption, console, print_json
from prod9.errors import ConfigError, DataError
from prod9.system.wording import plural

PARTS = ("train", "val", "test")


def unpack(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A MedMNIST3D file, e.g. organmnist3d.npz or organmnist3d_64.npz."
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Where the volumes go; made if missing.")
    ],
    part: Annotated[str, typer.Option("--part", metavar="train|val|test", help="Which part.")] = "test",
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", metavar="NAME", help="Class; repeatable. [all]")
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=1, help="The first so many of each class.")
    ] = 1,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write samples as volumes: `organmnist3d-test-00003_liver.nii.gz`, and its foreground as `…_seg.nii.gz`.

    They are what `prod9 generate label --example` and `prod9 generate control --seg` take. Voxels of 1 mm, since the
    file says none. The foreground lies above Otsu's threshold; of binary shapes it is the shape.
    """
    if part not in PARTS:
        raise ConfigError(f"--part: expected {', '.join(PARTS)}, got {part!r}")
    from prod9.config.data import MEDMNIST3D_CLASSES

    name, _, size = file.name.removesuffix(".npz").partition("_")
    classes = MEDMNIST3D_CLASSES.get(name)
    if classes is None or size not in ("", "64"):
        raise DataError(
            f"{file}: expected {', '.join(MEDMNIST3D_CLASSES)} with .npz or _64.npz, got another name; the name says "
            "what the labels mean."
        )
    chosen = list(dict.fromkeys(label or classes))
    unknown = [wanted for wanted in chosen if wanted not in classes]
    if unknown:
        raise ConfigError(f"--label: expected {', '.join(classes)}, got {', '.join(unknown)}")
    made = [path.name for path in _write(file, name, int(size or 28), classes, part, chosen, num_samples, output_dir,
                                         overwrite)]  # fmt: skip
    if as_json:
        print_json({"output_dir": str(output_dir), "made": made})
    else:
        console.print(f"{plural(made, 'volume')} in {output_dir}")


def _write(
    file: Path,
    name: str,
    size: int,
    classes: tuple[str, ...],
    part: str,
    chosen: list[str],
    num_samples: int,
    output_dir: Path,
    overwrite: bool,
) -> list[Path]:
    import numpy as np

    from prod9 import volumes
    from prod9.data.cases import PARTS as KNOWN
    from prod9.data.cases import Part
    from prod9.data.foreground import foreground_of_image
    from prod9.data.layouts.medmnist import SHAPE_SETS, open_medmnist3d
    from prod9.files import check_writable

    opened = open_medmnist3d(file.parent, name, size)
    known: dict[str, Part] = {str(name): name for name in KNOWN}
    side = known[part]
    images, labels = opened.read(side, len(classes))
    names = opened.identities(side)
    check_writable(output_dir)
    affine = np.eye(4)
    affine[:3, 3] = -(size - 1) / 2
    made = []
    for label in chosen:
        for index in np.flatnonzero(labels == classes.index(label))[:num_samples].tolist():
            mask = foreground_of_image(images[index], is_shape=name in SHAPE_SETS)
            for word, data in ((label.replace(" ", "-"), images[index]), ("seg", mask)):
                path = output_dir / f"{names[index]}_{word}.nii.gz"
                volumes.write(path, data, affine, dtype=np.uint8, overwrite=overwrite)
                made.append(path)
    return made
