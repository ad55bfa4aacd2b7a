"""Dataset classes, one kind of sample per module. Importing this package imports no torch."""
