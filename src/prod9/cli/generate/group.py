"""``prod9 generate`` and ``prod9-generate``: volumes from trained models."""

from prod9.cli.generate.control import generate_control
from prod9.cli.generate.inpaint import inpaint
from prod9.cli.generate.label import generate_labels
from prod9.cli.generate.masks import generate_masks
from prod9.cli.generate.patients import generate_patients
from prod9.cli.generate.translate import translate
from prod9.cli.shared import new_app, run_app

app = new_app("Generate volumes with trained models.")
app.command("translate")(translate)
app.command("control")(generate_control)
app.command("inpaint")(inpaint)
app.command("masks")(generate_masks)
app.command("patients")(generate_patients)
app.command("label")(generate_labels)


def main() -> None:
    """Run the command line."""
    run_app(app)
