"""From files to tensors, without networks, Lightning or the config schema. Importing this package imports no torch."""
