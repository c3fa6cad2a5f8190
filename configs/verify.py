"""Check jaxgen against golden cases: --config.paths=DIR1,DIR2 (each a case, or a folder of cases)."""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """No variant."""
    split_variant(variant)
    c = common.get_config()
    c.job = "verify"
    return c
