"""A page for people without a command line: models, scans and results, on this computer alone."""
