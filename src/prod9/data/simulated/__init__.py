"""Simulated cohorts: an atlas, deformations, tumours, contrasts."""
