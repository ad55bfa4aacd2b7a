"""``python -m prod9``: the command ``prod9``, where its script is not on the path."""

from prod9.cli.app import main

main()
