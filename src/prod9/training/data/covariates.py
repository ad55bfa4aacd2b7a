"""The covariates of a run: its table, for the cases of one part."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from prod9.config.schema import CovariatesConfig
from prod9.data.covariates import CovariateCoder, for_cases
from prod9.data.label_covariates import mirrored
from prod9.system.wording import listing

log = logging.getLogger("prod9")


def read_covariates(config: CovariatesConfig | None, cases: Iterable[str]) -> Mapping[str, Tensor] | None:
    """Return case → features ``[K C]``, zeros for a case without a row; None where the run has no covariates.

    Raises DataError for a table that cannot be used, and for one that has none of ``cases``.
    """
    if config is None or config.file is None:
        return None
    names, path = sorted(set(cases)), Path(config.file)
    coder = CovariateCoder(numbers=config.numbers, categories=config.categories)
    table = coder.read(path)
    lacking = for_cases(table, names, path)
    if lacking:
        log.warning("%s: no row for %s; what is known of them counts as unknown.", path, listing(lacking))
    unknown = torch.zeros(coder.shape)
    return {name: table.get(name, unknown) for name in names}


def measured_covariates(
    config: CovariatesConfig, lesions: Mapping[str, Mapping[str, float]]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Return case → features ``[K C]`` of label maps, and those of their mirror images.

    lesions: what is measured of each case. Raises DataError for a value beyond its bounds.
    """
    coder = CovariateCoder(numbers=config.numbers, categories=config.categories)

    def encoded(values: Mapping[str, float], case: str) -> Tensor:
        asked = {name: f"{value:.6g}" for name, value in values.items() if name in config.numbers}
        return coder.encode(asked, source=f"the segmentation of {case}")

    return (
        {case: encoded(values, case) for case, values in lesions.items()},
        {case: encoded(mirrored(values), case) for case, values in lesions.items()},
    )
