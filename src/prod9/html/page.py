"""Render HTML pages from templates, and put pictures into them.

Whatever a template inserts is escaped; only ``Markup``, which the charts and assets of this package return, is not. The
base template forbids scripts and every request to a network, unless a page allows a script of its own.
"""

import base64
import io
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prod9 import __version__

_ASSETS = "assets"


def render(package: str, template: str, **values: Any) -> str:
    """Return the page that ``template`` makes of ``values``.

    Templates extend ``base.html.jinja``, import the macros of ``parts.html.jinja``, and insert a file of their folder
    as it is with ``asset("NAME")``.

    Args:
        package: import path of the package whose folder ``assets`` holds the template.
        template: file name of the template.
        **values: what the template inserts; a name that it uses and that is missing here raises ``UndefinedError``.
    """
    loader = ChoiceLoader([PackageLoader(package, _ASSETS), PackageLoader("prod9.html", _ASSETS)])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["asset"] = lambda name: Markup(loader.get_source(environment, name)[0])  # pyrefly: ignore[unsupported-operation]
    return environment.get_template(template).render(version=__version__, **values)


def data_uri(png: bytes) -> str:
    """Return the address under which an ``img`` element shows the content of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def encode_png(image: np.ndarray) -> bytes:
    """Return the picture ``image``, uint8, grey ``[h w]`` or RGB ``[h w 3]``, as the content of a PNG file."""
    from matplotlib.image import imsave  # takes half a second, and only pages need it

    buffer = io.BytesIO()
    colours = image if image.ndim == 3 else np.stack([image] * 3, axis=2)  # which no colour map changes
    imsave(buffer, colours, format="png")
    return buffer.getvalue()
