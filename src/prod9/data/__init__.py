"""Stage 0, files to tensors: knows no network, no Lightning and no config schema. Imports no torch."""
