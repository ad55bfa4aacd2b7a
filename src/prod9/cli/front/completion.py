"""What shells offer after Tab, beside commands and options: the names of shipped configs."""


def config_names(incomplete: str) -> list[str]:
    """Return the names of shipped configs that begin with ``incomplete``; the shell itself completes paths."""
    from prod9.config.load import shipped_configs

    return [name for name in shipped_configs() if name.startswith(incomplete)]
