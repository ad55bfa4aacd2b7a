"""import-linter checks the layers; this checks that no module escapes them."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c for c in settings["contracts"] if c["type"] == "layers")["layers"]
    return [name.strip(" ()") for layer in layers for name in re.split("[:|]", layer)]


def modules():
    for path in sorted((ROOT / "src" / "prod9").rglob("*.py")):
        yield ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


def test_every_module_has_its_layer():
    layers = listed()
    inside = {m for m in modules() if any(m == layer or m.startswith(f"{layer}.") for layer in layers)}
    above = {m for m in modules() if any(layer.startswith(f"{m}.") for layer in layers)}
    assert set(modules()) - inside - above == set()


def test_the_picture_of_the_layers_is_the_contract():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = re.findall(r"[a-z_]+", text.split("## Who may import whom")[1].split("```")[1])
    packages = [name.removeprefix("prod9.") for name in listed() if name != "prod9.__main__"]
    assert [name for name in drawn if name in packages] == packages
