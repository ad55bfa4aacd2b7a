"""Names and colours of canonical labels, the same in every page and picture."""

LABEL_NAMES = {1: "necrotic core", 2: "oedema", 3: "enhancing tumour", 4: "resection cavity"}
"""Name of each canonical label of a glioma."""
LABEL_COLOURS = {1: "#dc3c3c", 2: "#3cc85a", 3: "#fac828", 4: "#4aa3ff"}
"""Colour of each canonical label."""


def rgb(label: int) -> tuple[int, int, int]:
    """Return red, green and blue of a label, 0 to 255; labels without a colour have that of label 1."""
    text = LABEL_COLOURS.get(label, LABEL_COLOURS[1])
    red, green, blue = (int(text[k : k + 2], 16) for k in (1, 3, 5))
    return red, green, blue
