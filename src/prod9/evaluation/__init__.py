"""Scores of reconstructed and generated volumes.

``images``, ``utility`` and ``audit`` compare folders of files; ``paired``, ``translation``, ``control`` and the modules
of ``sets`` and ``judges`` score tensors. What they draw at random follows from a seed or a generator.
"""
