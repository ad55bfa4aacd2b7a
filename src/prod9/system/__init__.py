"""The machine and the process: memory, locks on folders, signals, the terminal."""
