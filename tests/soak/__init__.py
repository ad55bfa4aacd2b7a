"""The soak: kills runs at random and chosen moments, feeds changed files to every reader. See ``__main__``."""
