"""The pictures of a demo: their file names, in the order in which they are looked at, and what each shows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A picture of the demo.

    Attributes:
        file: its name in the demo's folder.
        title: what it shows.
        leads: whether the report begins with it.
    """

    file: str
    title: str
    leads: bool = False


TRANSLATION = Picture(
    "1_translation.png", "A missing modality made from the others, with its lesion", leads=True
)
CONTROL = Picture("2_control.png", "A tumour made where a segmentation asks for it", leads=True)
REMOVAL = Picture("3_removal.png", "A tumour removed by drawing its region again", leads=True)
MONTAGE = Picture("4_montage.png", "Held-out scans, their reconstructions, and generated volumes")
GENERATED = Picture("5_generated.png", "Every generated volume, one axial slice each")
MASKS = Picture("6_masks.png", "Lesion masks that a model drew, beside those of patients")
MADE = Picture("7_patients.png", "Patients who do not exist, made under masks that a model drew")
PICTURES = (TRANSLATION, CONTROL, REMOVAL, MONTAGE, GENERATED, MASKS, MADE)
"""By name, so that a folder lists them in this order."""
LATER = {"masks": MASKS, "patients": MADE}
"""Those of a demo's last part, by the name of their scores."""
