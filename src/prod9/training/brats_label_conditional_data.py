"""Data modules live in :mod:`prod9.training.data`."""

from prod9.training.data.label_conditional import (
    BraTSLabelConditionalDataModule as BraTSLabelConditionalDataModule,
)
