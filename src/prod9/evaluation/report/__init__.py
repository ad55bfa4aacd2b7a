"""A run as one HTML file that opens from disk: what was trained, how well, what it makes, whether it copies."""
