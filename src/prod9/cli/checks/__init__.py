"""`--check`: everything that can be known before a run begins."""
