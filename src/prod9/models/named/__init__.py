"""Models by name: a path, a packaged model such as ``demo/translate``, or a repository such as ``hf:org/model``."""
