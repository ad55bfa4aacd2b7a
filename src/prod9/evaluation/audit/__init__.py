"""Copies of training patients among generated volumes."""
