"""The folder forms by name."""

from prod9.data.formats.bids import BIDS
from prod9.data.formats.brats import BRATS
from prod9.data.formats.form import Form
from prod9.data.formats.nnunet import NNUNET
from prod9.errors import ConfigError

FORMS = {form.name: form for form in (BRATS, NNUNET, BIDS)}


def form_of(name: str) -> Form:
    """Return the form called ``name``; ConfigError for another."""
    if name not in FORMS:
        raise ConfigError(f"--format: expected {', '.join(FORMS)}, got {name}; choose one of these")
    return FORMS[name]
