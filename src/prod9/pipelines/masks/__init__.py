"""Lesion masks drawn by a trained model."""
