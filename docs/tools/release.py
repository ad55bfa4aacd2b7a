"""Builds wheel and sdist into ``dist`` and tries the wheel in a fresh environment of every supported Python at hand.

Nothing is uploaded. ``--python PATH`` names interpreters, by default ``python3.11`` to ``python3.13`` where they are
found; ``--constraint FILE`` hands pip another list of versions than ``constraints.txt``. Each environment holds what a
user's does, PyTorch included, so it takes some GB for a while.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST, PACKAGE = ROOT / "dist", ROOT / "src" / "prod9"
SUPPORTED = ("3.11", "3.12", "3.13")
BIN = "Scripts" if os.name == "nt" else "bin"


def main() -> int:
    """Build, check, and try; return 1 at the first thing that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", help="an interpreter to try; repeatable")
    parser.add_argument(
        "--constraint", default=str(ROOT / "constraints.txt"), help="versions that pip may take"
    )
    arguments = parser.parse_args()
    try:
        wheel, sdist = built()
        complete(wheel)
        say("twine check", run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]))
        pythons = arguments.python or found()
        for python in pythons:
            tried(python, wheel, arguments.constraint)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd))}: exit code {error.returncode}\n{error.stdout}{error.stderr}")
        return 1
    missing = set(SUPPORTED) - {version_of(python) for python in pythons}
    print(
        f"{wheel.name}, {sdist.name}: fit to publish"
        + (f"; not tried: {', '.join(sorted(missing))}" * bool(missing))
    )
    if not os.environ.get("PROD9_REPOSITORY"):
        print(
            "PROD9_REPOSITORY is not set: README's pictures will not show on a package index; set it and build again"
        )
    return 0


def built() -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, into an empty ``dist``."""
    shutil.rmtree(DIST, ignore_errors=True)
    run([sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT)])
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    say(
        "built",
        f"{wheel.name} {wheel.stat().st_size / 1e6:.1f} MB, {sdist.name} {sdist.stat().st_size / 1e6:.1f} MB",
    )
    return wheel, sdist


def complete(wheel: Path) -> None:
    """Compare the wheel with the package: every file that git keeps is in it, and nothing else."""
    listed = run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "src/prod9"]
    )
    wanted = {name.removeprefix("src/") for name in listed.splitlines() if (ROOT / name).is_file()}
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
    if wanted != there:
        absent, extra = sorted(wanted - there)[:5], sorted(there - wanted)[:5]
        raise SystemExit(
            f"{wheel}: expected the files of src/prod9, got {absent} missing and {extra} besides"
        )
    say("files", f"{len(there)}, configurations and packaged weights among them")


def found() -> list[str]:
    """Return the interpreters of supported versions on the path that start."""
    names = [shutil.which(f"python{version}") for version in SUPPORTED]
    return [name for name in names if name and version_of(name)] or [sys.executable]


def version_of(python: str) -> str:
    """Return ``3.11`` and the like; empty for a program that does not start."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def tried(python: str, wheel: Path, constraint: str) -> None:
    """Install the wheel into a fresh environment and use it from an empty folder."""
    with tempfile.TemporaryDirectory(prefix="prod9-release-") as name:
        folder = Path(name)
        run([python, "-m", "venv", str(folder / "venv")])
        programs = folder / "venv" / BIN
        run([programs / "python", "-m", "pip", "install", "-q", "-c", constraint, str(wheel)])
        run([programs / "python", "-m", "pip", "check"])
        weights = run(
            [
                programs / "python",
                "-c",
                "import prod9, pathlib; print(pathlib.Path(prod9.__file__).parent / 'demo' / 'weights')",
            ],
            folder,
        ).strip()
        prod9 = programs / "prod9"
        for words in (
            ["--version"],
            ["doctor"],
            ["configs", "list"],
            ["data", "simulate", "brains", "-n", "1", "--spacing", "3.75"],
            ["data", "check", "brains"],
            [
                "generate",
                "label",
                "--model",
                f"{weights}/stage2_label",
                "--label",
                "T1",
                "-n",
                "1",
                "-o",
                "made",
            ],
            [
                "generate",
                "translate",
                "--model",
                f"{weights}/stage2",
                "--patient",
                "brains",
                "--target",
                "FLAIR",
                "-o",
                "filled",
            ],
        ):
            run([prod9, *words], folder)
        made = len(list(folder.glob("made/*.nii.gz"))) + len(list(folder.glob("filled/*/*.nii.gz")))
        if made != 2:
            raise SystemExit(f"{python}: expected two volumes, got {made}")
        say(f"Python {version_of(python)}", "installed, all commands ran, two volumes made")


def run(command: list[str | Path], folder: Path | None = None) -> str:
    """Run a command outside of the repository's own package; return what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout


def say(what: str, text: str) -> None:
    """Print one line at once."""
    print(f"{what}: {' '.join(text.split())}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
