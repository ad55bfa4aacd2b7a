"""Which shipped configuration fits a data set and a device, and what it takes. Imports no torch."""
