"""``prod9 data unpack``: samples of a MedMNIST3D file as volumes, with the foreground that stage 3 is trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prod9.cli.front.after import tell_next
from prod9.cli.shared import DebugOption, JsonOption, OverwriteOption, console, print_json
from prod9.data.cases import PARTS, Part
from prod9.errors import ConfigError, DataError
from prod9.system.wording import plural

if TYPE_CHECKING:
    import numpy as np


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
    subset: Annotated[
        str, typer.Option("--subset", metavar="train|val|test", help="Which samples of the file.")
    ] = "test",
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", metavar="NAME", help="Class; repeatable. [all]")
    ] = None,
    num_samples: Annotated[
        int,
        typer.Option("--num-samples", "-n", min=1, help="Number of samples per class, from the first on."),
    ] = 1,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write samples as volumes: `organmnist3d-test-00003_liver.nii.gz`, and the foreground as `…_seg.nii.gz`.

    Use them with `prod9 generate label --example` and `prod9 generate control --seg`. Voxels have 1 mm, since the file
    gives no size. The foreground is above Otsu's threshold; for binary shapes it is the shape.
    """
    parts: dict[str, Part] = {side: side for side in PARTS}
    if subset not in parts:
        raise ConfigError(f"--subset: expected {', '.join(PARTS)}, got {subset!r}; choose one.")
    from prod9.config.data import MEDMNIST3D_CLASSES

    name, _, size = file.name.removesuffix(".npz").partition("_")
    classes = MEDMNIST3D_CLASSES.get(name)
    if classes is None or size not in ("", "64"):
        raise DataError(
            f"{file}: expected {', '.join(MEDMNIST3D_CLASSES)} with .npz or _64.npz, got another name; rename the "
            "file, since its name defines what the labels mean."
        )
    chosen = list(dict.fromkeys(label or classes))
    unknown = [wanted for wanted in chosen if wanted not in classes]
    if unknown:
        raise ConfigError(f"--label: expected {', '.join(classes)}, got {', '.join(unknown)}; correct it.")
    from prod9.data.layouts.medmnist import SHAPE_SETS, open_medmnist3d
    from prod9.files import check_writable

    opened = open_medmnist3d(file.parent, name, int(size or 28))
    images, labels = opened.read(parts[subset], len(classes))
    names = opened.identities(parts[subset])
    check_writable(output_dir)
    made: list[str] = []
    for wanted in chosen:
        for index in (labels == classes.index(wanted)).nonzero()[0][:num_samples].tolist():
            path = output_dir / f"{names[index]}_{wanted.replace(' ', '-')}.nii.gz"
            seg_path = output_dir / f"{names[index]}_seg.nii.gz"
            _write(images[index], path, seg_path, is_shape=name in SHAPE_SETS, overwrite=overwrite)
            made += [path.name, seg_path.name]
    if as_json:
        print_json({"output_dir": str(output_dir), "made": made})
    else:
        console.print(f"{plural(made, 'volume')} in {output_dir}")
        tell_next("prod9", "generate", "label", "-m", "RUN", "-l", chosen[0], "-o", f"{output_dir}_generated")


def _write(image: "np.ndarray", path: Path, seg_path: Path, *, is_shape: bool, overwrite: bool) -> None:
    """Write a sample and its foreground, centred on the origin."""
    import numpy as np

    from prod9 import volumes
    from prod9.data.foreground import foreground_of_image

    affine = np.eye(4)
    affine[:3, 3] = -(image.shape[0] - 1) / 2
    for target, data in ((path, image), (seg_path, foreground_of_image(image, is_shape=is_shape))):
        volumes.write(target, data, affine, dtype=np.uint8, overwrite=overwrite)
