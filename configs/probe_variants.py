"""Which variants change expression (eQTL), by a frozen model: configs/probe_variants.py:MODEL --config.data.path=D --config.init_from=W."""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL, which may be left out where init_from says it. Without data.path the variants are simulated."""
    (model,) = split_variant(variant, "model")
    c = common.get_config()
    c.job = "probe_variants"
    c.model.name = model
    return c
