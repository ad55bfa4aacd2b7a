"""``prod9 doctor``: what this machine offers, and what is missing, with the command that installs it."""

import importlib.util
import os
import platform
import shutil
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prod9.cli.shared import DebugOption, JsonOption, console, new_app, print_json
from prod9.system import machine
from prod9.system.waiting import CHOICES
from prod9.system.wording import plural

PACKAGES = ("prod9", "torch", "monai", "lightning", "numpy", "nibabel", "scipy", "pydantic", "safetensors")
EXTRAS = {
    "app": ("starlette", "uvicorn"),
    "hub": ("huggingface_hub",),
    "medmnist": ("medmnist",),
    "notebook": ("ipyniivue",),
    "perceptual": ("lpips", "torchvision"),
    "preprocess": ("SimpleITK",),
    "ray": ("ray",),
    "dev": ("pytest", "hypothesis"),
}
"""The optional extras of prod9 and the modules of each."""
VARIABLES = ("BRATS_DIR", "MEDMNIST_DIR", "PROD9_WEIGHTS_DIR", "PROD9_RUNS", "PROD9_CACHE", *CHOICES)
"""Environment variables that prod9 or its shipped configs read."""

app = new_app("Report versions, devices, memory, disk, weights and optional packages.")


@app.command(example="prod9 doctor")
def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Report versions, devices, memory, disk, weights found and optional packages."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        _print(report)


def examine() -> dict[str, Any]:
    """Return the report as plain values; sizes are in bytes, a missing thing is None or absent."""
    return {
        "system": {"platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "memory": asdict(machine.memory()),
        "disk": {"folder": str(Path.cwd()), "free": shutil.disk_usage(Path.cwd()).free},
        "variables": {name: os.environ.get(name) for name in VARIABLES},
        "weights": _weights(),
        "extras": {name: _extra(name, modules) for name, modules in EXTRAS.items()},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [
        {"name": "cpu", "cores": machine.cores(), "threads": torch.get_num_threads()}
    ]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        model = torch.cuda.get_device_name(index)
        devices.append({"name": f"cuda:{index}", "model": model, "free": free, "total": total})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps"})
    return devices


def _weights() -> dict[str, Any]:
    from prod9.errors import ConfigError
    from prod9.measures.weights import WEIGHT_FILES, find_weights, weight_folders

    found: dict[str, str | None] = {}
    for network in WEIGHT_FILES:
        try:
            found[network] = str(find_weights(network))
        except ConfigError:
            found[network] = None
    folders = {str(folder): folder.is_dir() for folder in weight_folders()}
    return {"folders": folders, "files": found, "wanted": {k: v[0] for k, v in WEIGHT_FILES.items()}}


def _extra(name: str, modules: tuple[str, ...]) -> dict[str, Any]:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    command = f"pip install 'prod9[{name}]'" if missing else None
    return {"installed": not missing, "missing": missing, "install": command}


def _print(report: dict[str, Any]) -> None:
    system = report["system"]
    _section("System", {"platform": system["platform"], "python": system["python"]})
    _section("Versions", {name: value or "not installed" for name, value in report["versions"].items()})
    _section("Devices", {device["name"]: _device_text(device) for device in report["devices"]})
    _section("Memory", {name: _size(value) for name, value in report["memory"].items()})
    _section("Disk", {report["disk"]["folder"]: f"{_size(report['disk']['free'])} free"})
    _section("Variables", {name: value or "not set" for name, value in report["variables"].items()})
    weights = report["weights"]
    _section(
        "Weight folders", {name: "there" if yes else "absent" for name, yes in weights["folders"].items()}
    )
    wanted = {name: f"not found (file {weights['wanted'][name]})" for name in weights["files"]}
    _section("Perceptual weights", {name: path or wanted[name] for name, path in weights["files"].items()})
    extras = report["extras"].items()
    _section("Extras", {n: "installed" if e["installed"] else f"missing: {e['install']}" for n, e in extras})


def _section(title: str, rows: dict[str, str]) -> None:
    console.print(title, style="bold")
    width = max(map(len, rows), default=0)
    if not rows:
        console.print("  none")
    for name, value in rows.items():
        console.print(f"  {name:<{width}}  {value}")


def _device_text(device: dict[str, Any]) -> str:
    if device["name"] == "cpu":
        return f"{plural(device['cores'], 'core')}, {plural(device['threads'], 'thread')}"
    if "model" not in device:
        return "available"
    return f"{device['model']}, {_size(device['free'])} of {_size(device['total'])} free"


def _size(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 1024**3:.1f} GiB"
