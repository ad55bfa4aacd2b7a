"""``prod9 data check`` on headers: cases (five files each) per second on cached files, and the time to start.

No peer reads headers only, so the bound is absolute.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import _harness
import nibabel as nib
import numpy as np

from prod9.data.checking.report import check_dataset

KINDS = ("t1n", "t1c", "t2w", "t2f", "seg")
_START = (
    "from prod9.cli.app import app; from prod9.cli.shared import run; run(app, ['data', 'check', '--help'])"
)


def write_cases(root: Path, number: int) -> None:
    """Write cases in the naming of 2023; a header takes as long to read whatever the size of its volume."""
    rng = np.random.default_rng(0)
    for k in range(number):
        case = root / f"BraTS-GLI-{k:05d}-000"
        case.mkdir()
        for kind in KINDS:
            data = rng.integers(0, 4 if kind == "seg" else 1000, (24, 24, 15), dtype=np.int16)
            nib.save(nib.Nifti1Image(data, np.eye(4)), case / f"{case.name}-{kind}.nii.gz")


def main() -> None:
    """Run the benchmark."""
    bench = _harness.start("bench_check", __doc__)
    number = 100 if bench.quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        write_cases(Path(folder), number)
        reports = []
        medians = bench.time({"check": lambda: reports.append(check_dataset(folder))}, rounds=5)
        assert all(report.ok for report in reports)
    bench.sizes["cases"] = number
    bench.value("cases_per_second", number / medians["check"])
    wall = bench.clock
    bench.clock = "wall"  # the time of a child process is not on our own clock
    medians = bench.time(
        {"start": lambda: subprocess.run([sys.executable, "-c", _START], capture_output=True, check=True)},
        rounds=3,
    )
    bench.clock = wall
    bench.value("start_seconds", medians["start"])
    bench.report(["nibabel", "numpy"])


if __name__ == "__main__":
    main()
