"""Which variants change expression (eQTL), by a frozen model: configs/probe_variants.py:MODEL --config.data.path=D --config.init_from=W.

The simulated table with random weights of mamba_smoke: AUROC 0.74, 0.67 and 0.70 by distance, where 0.95 is attainable, in 67 s on two busy
CPU cores (docs/variant_probe.md).
"""

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
