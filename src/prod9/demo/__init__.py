"""``prod9 demo``: from nothing to generated brains on one machine, through the same code as real runs.

``plan`` says what is done and how much of it, ``steps`` does it and can go on where it was interrupted,
``scores`` measures the result on held-out patients, ``pictures`` shows it.
"""
