"""Settings of Sphinx; `make docs` builds a copy of these pages that ``docs/tools/build_site.py`` completes."""

import prod9

project = "prod9"
author = "The prod9 authors"
copyright = author
release = version = prod9.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
"""Attributes are described where their class is, not listed a second time."""
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = f"prod9 {prod9.__version__}"
html_static_path: list[str] = []
html_show_sourcelink = False
