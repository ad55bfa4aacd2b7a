"""Builds the documentation site into ``build/site``: every page of ``docs``, those beside the code, and the API.

The pages are the Markdown files that the repository shows; nothing is written twice. They are copied to
``build/pages``, where links to files that are no pages become plain text, and the reference of the API is added, a page
per package. Sphinx then builds them strictly: any warning, such as a link to a heading that is not there, is an error.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS, PACKAGE = ROOT / "docs", ROOT / "src" / "prod9"
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
BLOCK = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
PROJECT = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PARTS = {
    "Tutorials": (
        "tutorials/first-brain",
        "tutorials/missing-modality",
        "tutorials/steer-with-a-mask",
        "tutorials/is-it-any-good",
        "tutorials/brats",
        "tutorials/medmnist",
        "tutorials/nvidia-weights",
    ),
    "How-to": ("how-to/install", "how-to/your-data", "how-to/train", "how-to/*"),
    "Reference": (
        "reference/commands",
        "reference/configs/*",
        "reference/cost",
        "faq",
        "troubleshooting",
        "api/*",
    ),
    "Explanation": (
        "explanation/glossary",
        "explanation/families",
        "explanation/comparison",
        "explanation/*",
    ),
    "Project": ("project/*", "log"),
}
"""Parts of the site in order; ``*`` stands for every page of a folder that is not named before."""


def main() -> int:
    """Write the pages, run Sphinx, and return its exit code."""
    shutil.rmtree(PAGES, ignore_errors=True)
    places = staged()
    for source, place in places.items():
        text = relinked(source.read_text(encoding="utf-8"), source, places)
        (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / place).write_text(text, encoding="utf-8")
    shutil.copytree(DOCS / "pictures", PAGES / "pictures")
    shutil.copy(DOCS / "conf.py", PAGES / "conf.py")
    write_api(PAGES / "api")
    index = PAGES / "index.md"
    index.write_text(index.read_text(encoding="utf-8") + contents(), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(PAGES),
        str(SITE),
    ]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        print(
            f"{SITE.relative_to(ROOT)}/index.html: {len(list(PAGES.rglob('*.[mr][ds]*')))} pages, no warning"
        )
    return code


def staged() -> dict[Path, str]:
    """Return where each Markdown file goes, relative to the pages."""
    places = {path: path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    places |= {ROOT / name: f"project/{name.lower()}" for name in PROJECT}
    for path in (PACKAGE / "configs").rglob("README.md"):
        parts = path.parent.relative_to(PACKAGE / "configs").parts
        places[path] = f"reference/configs/{'-'.join(parts) or 'all'}.md"
    places[PACKAGE / "demo" / "weights" / "README.md"] = "reference/configs/packaged-weights.md"
    places[ROOT / "examples" / "README.md"] = "project/examples.md"
    return dict(sorted(places.items()))


def relinked(text: str, source: Path, places: dict[Path, str]) -> str:
    """Return a page with links to where the others went; a link to a file that is no page becomes its text."""
    here = Path(places[source]).parent

    def link(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        path, hash_sign, heading = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        file = (source.parent / path).resolve()
        if file.is_dir():
            file = file / "README.md"
        if file in places:
            place = places[file]
        elif mark:
            place = file.relative_to(DOCS).as_posix()
        else:
            return words
        up = "../" * len(here.parts)
        return f"{mark}[{words}]({up}{place}{hash_sign}{heading})"

    blocks = BLOCK.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in blocks)


def write_api(folder: Path) -> None:
    """Write a page per package with every public module in it."""
    folder.mkdir(parents=True)
    packages: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = ("prod9", *path.relative_to(PACKAGE).with_suffix("").parts)
        names = names[:-1] if names[-1] == "__init__" else names
        if names[-1].startswith("_") or names[1:2] == ("cli",):
            continue
        packages.setdefault(".".join(names[:2]), []).append(".".join(names))
    for package, modules in packages.items():
        lines = [package, "=" * len(package), ""]
        for module in modules:
            if module != package:
                lines += [module, "-" * len(module), ""]
            lines += [f".. automodule:: {module}", ""]
        (folder / f"{package}.rst").write_text("\n".join(lines), encoding="utf-8")


def contents() -> str:
    """Return the tables of contents of the first page."""
    found = {path.relative_to(PAGES).with_suffix("").as_posix() for path in PAGES.rglob("*.md")}
    found |= {path.relative_to(PAGES).as_posix()[: -len(".rst")] for path in PAGES.rglob("*.rst")}
    found -= {"index"}
    text = ""
    for part, names in PARTS.items():
        lines = []
        for name in names:
            some = sorted(page for page in found if page == name or (name[-1] == "*" and _in(page, name)))
            found -= set(some)
            lines += some
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {part}\n\n" + "\n".join(lines) + "\n```\n"
    if found:
        raise SystemExit(f"pages in no part of the site: {', '.join(sorted(found))}; add them to PARTS")
    return text


def _in(page: str, pattern: str) -> bool:
    return page.rpartition("/")[0] == pattern[:-2]


if __name__ == "__main__":
    sys.exit(main())
