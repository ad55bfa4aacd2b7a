"""Sets of volumes: their members, their features, and scores of their distributions."""
