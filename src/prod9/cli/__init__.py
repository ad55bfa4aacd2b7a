"""The commands; heavy imports happen inside them, so that ``--help`` answers at once."""

from prod9.system.waiting import limit_spinning

# Every command starts here, before anything imports torch.
limit_spinning()
