"""``prod9 demo``: from nothing to generated brains on one machine, with the same code as real runs.

``plan`` decides what is done and how much of it, ``steps`` does it and can go on after an interruption,
``scores`` measures the result on held-out patients, ``pictures`` shows it.
"""
