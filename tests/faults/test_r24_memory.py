"""How much memory is free is asked of the machine, of the container and of the limits of the process."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from prod9 import memory
from prod9.memory import free_memory

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available, described by files below a folder; this process is in the group /job/step."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    write(
        tmp_path / "proc/meminfo",
        f"MemTotal: 16777216 kB\nMemFree: 12 kB\nMemAvailable: {8 * GIB >> 10} kB\n",
    )
    write(tmp_path / "proc/self/cgroup", "0::/job/step\n")
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def group(folder: Path, most: object, used: int, cache: int = 0) -> None:
    write(folder / "memory.max", most)
    write(folder / "memory.current", used)
    write(folder / "memory.stat", f"anon 5\ninactive_file {cache}\n")


def test_r24_what_the_machine_has(system: Path) -> None:
    assert free_memory() == 8 * GIB
    group(system / "cgroup/job/step", "max", 3 * GIB)
    assert free_memory() == 8 * GIB


@pytest.mark.parametrize("place", ["job/step", "job", ""])
def test_r24_what_a_container_leaves(system: Path, place: str) -> None:
    group(system / "cgroup" / place, 4 * GIB, 3 * GIB, cache=GIB // 2)
    assert free_memory() == GIB + GIB // 2


def test_r24_what_a_container_of_version_1_leaves(system: Path) -> None:
    write(system / "proc/self/cgroup", "12:pids:/a\n4:memory,cpu:/docker/abc\n0::/\n")
    folder = system / "cgroup/memory/docker/abc"
    for name, value in (("limit", 2 * GIB), ("usage", GIB)):
        write(folder / f"memory.{name}_in_bytes", value)
    assert free_memory() == GIB


def test_r24_used_up_and_unknown(system: Path) -> None:
    group(system / "cgroup/job", GIB, 2 * GIB)
    assert free_memory() == 0
    (system / "proc/meminfo").unlink()
    (system / "cgroup/job/memory.max").write_text("odd")
    assert free_memory() is None or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def test_r24_a_limit_of_the_process() -> None:
    code = (
        "import resource; from prod9.memory import free_memory; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({GIB}, {GIB})); print(free_memory())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert GIB // 2 < int(ran.stdout) < GIB
