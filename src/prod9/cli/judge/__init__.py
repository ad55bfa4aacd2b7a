"""Commands that score, audit and report."""
