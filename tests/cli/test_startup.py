"""Help answers at once: nothing heavy is imported for it."""

import subprocess
import sys

import pytest

from tests.harness import MODULES, run

HEAVY = ("torch", "monai", "lightning", "scipy", "nibabel")

_PROBE = f"""
import sys, time
start = time.perf_counter()
from tests.harness import MODULES, run
for command in MODULES:
    assert run(command, "--help").code == 0
for args in (["train"], ["validate"], ["test"], ["infer"]):
    assert run("prod9-train-autoencoder", *args, "--help").code == 0
for args in (["train"], ["validate"], ["test"], ["generate"]):
    assert run("prod9-train-transformer", *args, "--help").code == 0
print(time.perf_counter() - start)
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""


def test_help_imports_nothing_heavy() -> None:
    ran = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout.split()[-1]) < 5.0, "twelve helps; one takes far below a second"


@pytest.mark.parametrize("command", MODULES)
def test_same_options_everywhere(command: str) -> None:
    groups = {
        "prod9-train-autoencoder": ["train", "validate", "test", "infer"],
        "prod9-train-transformer": ["train", "validate", "test", "generate"],
        "prod9-train-maisi-vae": ["train", "validate", "test", "infer"],
        "prod9-train-maisi-diffusion": ["train", "validate", "test", "generate"],
        "prod9-train-maisi-controlnet": ["train", "validate", "test", "generate"],
        "prod9-train-maskgit-controlnet": ["train", "validate", "test", "generate"],
        "prod9-generate": ["label"],
        "prod9": [],
    }
    for name in groups[command]:
        text = run(command, name, "--help").out
        for option in (
            "--config",
            "--set",
            "--output-dir",
            "--device",
            "--check",
            "--print-config",
            "--json",
        ):
            assert option in text, (command, name, option)
        assert ("--resume" in text) == (name == "train")
        assert ("--model" in text) == (name != "train")
