"""The front page is short and has pictures; pages of reference say what the code says."""

import re
from pathlib import Path

import pytest
import typer

from prod9.cli.app import app
from tests.architecture.test_docs import load

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
LARGEST_PICTURE = 300_000


def test_the_front_page_is_one_screen_and_a_half():
    assert len(README.split()) < 700
    assert len(PICTURE.findall(README)) >= 3


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_pictures_are_described_and_small(page):
    for text, path in PICTURE.findall(page.read_text(encoding="utf-8")):
        assert len(text) > 20, path
        assert (page.parent / path).stat().st_size <= LARGEST_PICTURE, path


def test_the_script_of_the_pictures_knows_them_all():
    script = (DOCS / "tools" / "pictures.py").read_text(encoding="utf-8")
    for picture in (DOCS / "pictures").iterdir():
        name = picture.name.removeprefix("demo_")
        assert name in script or f'"{picture.stem.removeprefix("demo_")}"' in script, picture


def test_the_page_of_commands_is_that_of_the_programs():
    tool = load("command_pages")
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run `make docs`"


def test_the_times_by_gpu_are_those_of_the_configs():
    tool = load("gpu_table")
    text = tool.PAGE.read_text(encoding="utf-8")
    assert text == tool.regenerated(text), "run `make docs`"


def test_every_command_is_on_the_page():
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        for below in getattr(command, "commands", [""]):
            assert f"\n### {' '.join(['prod9', name, below]).strip()}\n" in text


def test_troubleshooting_quotes_what_prod9_says():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src" / "prod9").rglob("*.py")]
    said = "\n".join(re.sub(r'"\s*\n\s*f?"', "", text) for text in sources)
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 12
    assert [row for row in rows if row not in said] == []


def test_the_first_page_of_the_documentation_leads_everywhere():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"index.md"}
    assert {page for page in pages if f"]({page}" not in index} == set()


def test_a_package_index_gets_absolute_links():
    pytest.importorskip("hatchling")
    tool = load("metadata")
    text = tool.absolute("![a](docs/a.png) [b](docs/b.md#c) [d](#e) [f](https://f)", "https://host/o/p", "v1")
    assert text == (
        "![a](https://host/o/p/raw/v1/docs/a.png) [b](https://host/o/p/blob/v1/docs/b.md#c) [d](#e) [f](https://f)"
    )
    assert all(address.startswith("https://host/o/p") for address in tool.urls("https://host/o/p").values())
