"""The brain of a scan with its skull: from a mask, from a program of your own, or not at all.

prod9 has no network for this and loads none: the weights of such networks are not part of it.
"""

import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi

from prod9.data.registration.geometry import Array, Placed, resample
from prod9.errors import ConfigError, DataError
from prod9.system.shell import split_line
from prod9.volumes import read, write

_SMALLEST_ML, _LARGEST_ML = 250.0, 2600.0
"""Volumes that a brain can have, infants and the largest heads included."""
_IN, _BRAIN, _MASK, _CASE = "{in}", "{brain}", "{mask}", "{case}"
_QUOTED = 300

CHOICES = (
    "expected a way to find the brain, got none, and prod9 has no weights of a stripping network; give one of: "
    "--strip-with COMMAND, a program that is installed here, such as "
    "--strip-with 'mri_synthstrip -i {in} -m {mask}' or --strip-with 'hd-bet -i {in} -o {brain}' (with its weights in "
    "place); --brain-mask FILE, a mask of each reference scan ({case} in the name stands for the case); or --no-strip, "
    "for scans without skull, or to keep it"
)


@dataclass(frozen=True)
class Stripping:
    """How the brain is found; at most one of the two is given, and without any nothing is stripped.

    Attributes:
        mask: name of a mask on the voxels of the reference scan, in which ``{case}`` stands for the case.
        command: words of a command that finds the brain in ``{in}`` and writes ``{mask}`` or ``{brain}``.
    """

    mask: str | None = None
    command: tuple[str, ...] = ()

    @classmethod
    def of_options(cls, *, brain_mask: str | None, strip_with: str | None, no_strip: bool) -> "Stripping":
        """Return the choice of a command line; ConfigError unless it is exactly one."""
        given = [
            name
            for name, value in (
                ("--brain-mask", brain_mask), ("--strip-with", strip_with), ("--no-strip", no_strip)
            )
            if value
        ]  # fmt: skip
        if not given:
            raise ConfigError(f"--strip-with: {CHOICES}.")
        if len(given) > 1:
            raise ConfigError(f"{given[0]}: expected it alone, got {' and '.join(given)}; choose one.")
        command = _words(strip_with) if strip_with else ()
        return cls(mask=brain_mask, command=command)

    def describe(self) -> str:
        """Return the choice as text, for records."""
        if self.command:
            return f"command {shlex.join(self.command)}"
        return "none" if self.mask is None else f"mask {self.mask}"

    def mask_file(self, case_id: str) -> Path | None:
        """Return the file of the mask of a case; None unless masks are given."""
        return None if self.mask is None else Path(self.mask.replace(_CASE, case_id))


def given_mask(path: Path, reference: Placed) -> Array:
    """Return a mask file as bool on the voxels of ``reference``; DataError for another grid, or no brain."""
    file = read(path)
    if file.data.shape != reference.data.shape or not np.allclose(
        file.header.affine, reference.affine, atol=1e-2
    ):
        raise DataError(
            f"{path}: expected a mask on the voxels of the reference scan, got another grid; draw it on that scan, or "
            "choose the scan that it was drawn on with --reference."
        )
    return require_brain(file.data > 0.5, reference.affine, str(path))


def run_command(command: tuple[str, ...], scan: Placed) -> Array:
    """Return what the command finds in ``scan``, as bool on its voxels.

    Raises DataError if the command fails, writes no file, another grid, or no brain. command: its words. scan: on the
    grid of the atlas, where such programs work best.
    """
    with tempfile.TemporaryDirectory(prefix="prod9-strip-") as folder:
        names = {
            _IN: Path(folder, "scan.nii.gz"),
            _BRAIN: Path(folder, "brain.nii.gz"),
            _MASK: Path(folder, "mask.nii.gz"),
        }
        write(names[_IN], scan.data, scan.affine)
        words = [_filled(word, names) for word in command]
        _execute(words)
        wanted = names[_MASK] if any(_MASK in word for word in command) else names[_BRAIN]
        if not wanted.exists():
            raise DataError(
                f"--strip-with: expected {words[0]} to write {wanted.name}, got no such file; try the command by hand."
            )
        found = read(wanted)
    if found.data.shape != scan.data.shape or not np.allclose(found.header.affine, scan.affine, atol=1e-2):
        raise DataError(
            f"--strip-with: expected {words[0]} to keep the grid of its input, got another; choose its options so."
        )
    inside = np.abs(found.data) > 0.5 if wanted is names[_MASK] else found.data != 0
    return require_brain(np.asarray(ndi.binary_fill_holes(inside)), scan.affine, f"--strip-with {words[0]}")


def to_grid(
    mask: Array, source_affine: Array, shape: tuple[int, ...], affine: Array, transform: Array
) -> Array:
    """Return a mask (bool) on another grid.

    Args:
        mask: ``[H W D]``.
        source_affine: 4×4, its voxels to mm.
        shape: of the other grid.
        affine: 4×4, voxels of the other grid to mm.
        transform: 4×4, mm of the other grid to mm of the mask.
    """
    return resample(Placed(mask, source_affine), shape, affine, transform, order=1) > 0.5


def require_brain(mask: Array, affine: Array, source: str) -> Array:
    """Return ``mask``; DataError if its volume is not that of a brain."""
    ml = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    if not _SMALLEST_ML <= ml <= _LARGEST_ML:
        raise DataError(
            f"{source}: expected a brain of {_SMALLEST_ML:g} to {_LARGEST_ML:g} ml, got {ml:.0f} ml; look at the mask, "
            "or give another."
        )
    return mask


def _words(text: str) -> tuple[str, ...]:
    try:
        words = tuple(split_line(text))
    except ValueError as problem:
        raise ConfigError(
            f"--strip-with: expected a command, got {text!r} ({problem}); correct its quotes."
        ) from None
    joined = " ".join(words)
    if _IN not in joined or (_MASK not in joined and _BRAIN not in joined):
        raise ConfigError(
            f"--strip-with: expected a command with {_IN} and {_MASK} or {_BRAIN} in it, got {text!r}; write it as "
            "'mri_synthstrip -i {in} -m {mask}'."
        )
    if shutil.which(words[0]) is None:
        raise ConfigError(
            f"--strip-with: expected a program that can be run, got {words[0]}; install it, or give its whole path."
        )
    return words


def _filled(word: str, names: dict[str, Path]) -> str:
    for place, path in names.items():
        word = word.replace(place, str(path))
    return word


def _execute(words: list[str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError as problem:
        raise DataError(
            f"--strip-with: {words[0]} cannot be run ({problem.strerror}); check it."
        ) from problem
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-_QUOTED:]
        raise DataError(
            f"--strip-with: expected {words[0]} to succeed, got exit code {done.returncode} ({said or 'no message'}); "
            "try the command by hand."
        )
