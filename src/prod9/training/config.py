"""Loading of configurations lives in :mod:`prod9.config.load`."""

from prod9.config.load import config_from_dict as config_from_dict
from prod9.config.load import config_to_dict as config_to_dict
from prod9.config.load import load_config as load_config
