"""Where the segmentations that synthetic patients follow come from."""

from collections.abc import Sequence
from pathlib import Path

from prod9.data.cases import Case
from prod9.errors import ConfigError


def find_masks(cases: Sequence[Case], training: Sequence[str], folder: Path | None) -> list[Path]:
    """Return the segmentations to follow: those in ``folder``, or of the training patients that have a lesion.

    Segmentations of patients that are held out are never followed: a test on them would know the answer.

    Raises ConfigError where there is none.

    Args:
        cases: of the real patients.
        training: ids of the patients that the models were trained on.
        folder: of masks, as ``generate masks`` or a person made them; None for those of the training patients.
    """
    if folder is not None:
        from prod9.cli.generate.inputs import find_segmentations

        return list(find_segmentations([folder]).values())
    import numpy as np

    from prod9 import volumes

    chosen = frozenset(training)
    given = [case.seg for case in cases if case.patient_id in chosen and case.seg is not None]
    masks = [path for path in given if np.any(volumes.read(path).data)]
    if not masks:
        raise ConfigError(
            "--masks: expected segmentations of the training patients that show a lesion, got none; name a folder of "
            "masks with --masks DIR"
        )
    return masks
