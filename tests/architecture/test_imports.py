"""What must answer at once may not import the heavy libraries, not even indirectly."""

import subprocess
import sys
from pathlib import Path

import pytest

import prod9

PACKAGE = Path(prod9.__file__).parent
HEAVY = ("torch", "monai", "lightning", "matplotlib")
TORCH_FREE = [
    "prod9",
    "prod9.errors",
    "prod9.files",
    "prod9.volumes",
    "prod9.data",
    "prod9.data.datasets",
    "prod9.data.layouts.find",
    "prod9.data.splits",
    "prod9.training",
    "prod9.config.load",
    "prod9.config.schema",
    "prod9.config.tables",
    "prod9.planning.estimates",
    "prod9.measures.weights",
    *(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for folder in ("cli", "config", "planning")
        for path in sorted((PACKAGE / folder).rglob("[a-z]*.py"))
    ),
]

IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1].split():
    importlib.import_module(name)
    heavy = [module for module in sys.argv[2].split() if module in sys.modules]
    if heavy:
        sys.exit(f"{name} imports {', '.join(heavy)}")
"""


def test_configs_commands_and_files_need_no_heavy_import():
    command = [sys.executable, "-c", IMPORT_EACH, " ".join(TORCH_FREE), " ".join(HEAVY)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["app", "autoencoder", "transformer"])
def test_help_takes_less_than_a_second(module):
    resource = pytest.importorskip("resource", reason="Windows counts no processor time of children")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import sys; from prod9.cli.{module} import main; sys.argv[1:] = ['--help']; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    # Processor time: other work on the machine does not count against us.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0
