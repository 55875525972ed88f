"""The tiny configuration as a file for the command line; the argument sets the objective."""

from jepa_vl.config import parse_arg
from tests.tiny import tiny_config


def get_config(arg=None):
    return tiny_config(objective=parse_arg(arg, objective="tcjepa")["objective"])
