"""Dataset classes, one family a module; :mod:`prod9.data.builders` holds the table. Imports no torch."""
