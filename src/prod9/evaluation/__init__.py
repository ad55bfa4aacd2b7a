"""Scores of reconstructed and generated volumes; everything takes tensors and a seed or a generator."""
