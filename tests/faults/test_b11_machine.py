"""Cores and memory are those of the container, whichever control groups it has."""

import os
from pathlib import Path

import pytest

from prod9.cli.checks.resources import device_memory
from prod9.cli.tools.doctor import examine
from prod9.system import machine

GIB = 1024**3
NONE_V1 = 9223372036854771712


def tree(root: Path, group: str, **files: object) -> Path:
    """Write a fake ``/proc`` and ``/sys``; the names of files have ``__`` for ``/`` and ``_DOT_`` for a point."""
    content = {"proc/self/cgroup": group} | {k: str(v) for k, v in files.items()}
    for name, text in content.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = "0::/"
TOP = "sys__fs__cgroup__"


def test_b11_a_container_of_version_2_has_its_own_limits(tmp_path):
    root = tree(
        tmp_path, V2,
        **{TOP + "memory_DOT_max": GIB, TOP + "memory_DOT_current": GIB // 2, TOP + "cpu_DOT_max": "100000 100000"},
    )  # fmt: skip
    assert machine.memory(root).total == GIB
    assert machine.memory(root).available == GIB // 2
    assert machine.cores(root) == 1


def test_b11_the_smallest_limit_on_the_way_up_holds(tmp_path):
    root = tree(
        tmp_path, "0::/job/step",
        **{
            TOP + "job__memory_DOT_max": GIB, TOP + "job__step__memory_DOT_max": "max",
            TOP + "job__cpu_DOT_max": "50000 100000", TOP + "job__step__cpu_DOT_max": "max 100000",
        },
    )  # fmt: skip
    assert machine.memory(root).total == GIB
    assert machine.cores(root) == 1


def test_b11_a_path_of_the_host_that_is_not_mounted_means_the_root(tmp_path):
    root = tree(tmp_path, "0::/docker/3f2a", **{TOP + "memory_DOT_max": GIB // 4})
    assert machine.memory(root).total == GIB // 4


def test_b11_caches_of_the_group_count_as_available(tmp_path):
    root = tree(
        tmp_path, V2,
        **{
            TOP + "memory_DOT_max": GIB, TOP + "memory_DOT_current": GIB,
            TOP + "memory_DOT_stat": f"anon 1\ninactive_file {GIB // 4}",
        },
    )  # fmt: skip
    assert machine.memory(root).available == GIB // 4


V1 = "11:cpuset:/\n7:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab"


@pytest.mark.parametrize("place", ["", "docker__ab__"])
@pytest.mark.parametrize("cpu", ["cpu", "cpu,cpuacct"])
def test_b11_version_1_is_read_too(tmp_path, place, cpu):
    root = tree(
        tmp_path, V1,
        **{
            f"{TOP}memory__{place}memory_DOT_limit_in_bytes": GIB,
            f"{TOP}memory__{place}memory_DOT_usage_in_bytes": GIB // 4,
            f"{TOP}{cpu}__{place}cpu_DOT_cfs_quota_us": 20000, f"{TOP}{cpu}__{place}cpu_DOT_cfs_period_us": 100000,
        },
    )  # fmt: skip
    assert machine.memory(root) == machine.Memory(GIB, GIB * 3 // 4)
    assert machine.cores(root) == 1


def test_b11_no_limit_is_the_machine(tmp_path):
    bare = machine.Memory(*machine._physical(Path("/")))
    one = tree(tmp_path / "1", V1, **{TOP + "memory__memory_DOT_limit_in_bytes": NONE_V1,
                                      TOP + "cpu__cpu_DOT_cfs_quota_us": -1,
                                      TOP + "cpu__cpu_DOT_cfs_period_us": 100000})  # fmt: skip
    two = tree(tmp_path / "2", V2, **{TOP + "memory_DOT_max": "max", TOP + "cpu_DOT_max": "max 100000"})
    for root in (one, two, tmp_path / "nothing"):
        assert machine.memory(root).total == bare.total
        assert machine.cores(root) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["", "nonsense", "-5", "1e9", "\xff"])
def test_b11_damaged_files_are_no_limit(tmp_path, text):
    root = tree(tmp_path, V2, **{TOP + "memory_DOT_max": text, TOP + "cpu_DOT_max": text + " x"})
    assert machine.memory(root).total == machine._physical(root)[0]
    assert machine.cores(root) == len(os.sched_getaffinity(0))


def test_b11_affinity_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert machine.cores(tmp_path) == 1


def test_b11_every_command_asks_in_one_place(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(GIB, GIB // 2))
    monkeypatch.setattr(machine, "cores", lambda: 3)
    report = examine()
    assert report["memory"] == {"total": GIB, "available": GIB // 2}
    assert report["devices"][0]["cores"] == 3
    assert device_memory("cpu") == GIB
    source = Path(machine.__file__).parent
    asking = [p for p in source.rglob("*.py") if "cpu_count(" in p.read_text() or "SC_PHYS" in p.read_text()]
    assert asking == [source / "machine.py"]
