"""Generated tables are up to date and links lead somewhere."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "docs" / "tools"


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_regenerating_the_tables_changes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["config_tables.py", "--check"])
    assert load("config_tables").main() == 0, capsys.readouterr().out


def test_every_link_leads_to_a_file(capsys):
    assert load("check_links").main() == 0, capsys.readouterr().out


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    tool = load("check_links")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("[a](page.md) [b](gone.md#x) `[c](code.md)` [d](#here) ![e](gone.png)")
    assert tool.broken_links(page) == ["page.md: gone.md", "page.md: gone.png"]


def test_every_shipped_transformer_has_its_autoencoder():
    tables = load("config_tables")
    configs = tables.shipped()
    for config in configs.values():
        model = tables.stage1_model(config, configs)
        assert (model is None) == (config.stage in ("autoencoder", "maisi_vae"))
        if config.data.kind == "medmnist3d":
            continue  # divided by its makers
        shares = config.data.split
        assert (shares.train, shares.val, shares.test) == pytest.approx((0.7, 0.15, 0.15))
