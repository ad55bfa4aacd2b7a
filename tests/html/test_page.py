"""Pages escape what they show, and their pictures hold every pixel."""

import io
from base64 import b64decode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from matplotlib.image import imread

from prod9.html.page import data_uri, encode_png, render

ATTACK = '"><script>alert(1)</script>'


def test_text_is_escaped_and_no_script_is_allowed():
    page = render("prod9.html", "base.html.jinja", title=ATTACK, brand=ATTACK)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4  # in the title and in the body
    assert "default-src 'none'" in page


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="brand"):
        render("prod9.html", "base.html.jinja", title="t")


@settings(deadline=None)  # the first picture imports matplotlib
@given(st.integers(1, 9), st.integers(1, 9))
def test_a_picture_holds_its_pixels(height: int, width: int) -> None:
    image = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    content = b64decode(data_uri(encode_png(image)).removeprefix("data:image/png;base64,"))
    pixels = np.rint(255 * imread(io.BytesIO(content)))
    assert (pixels[..., :3] == image[..., None]).all()
