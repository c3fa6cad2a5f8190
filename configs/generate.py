"""Continue DNA with a causal model: configs/generate.py:MODEL --config.generate.prompt=ACGT --workdir=DIR [--config.init_from=WEIGHTS].

256 bases from mamba_smoke with random weights: 26 s on two busy CPU cores, nearly all of it start and compilation.
"""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL, which may be left out where init_from says it. Without init_from the weights are random, by seed."""
    (model,) = split_variant(variant, "model")
    c = common.get_config()
    c.job = "generate"
    c.model.name = model
    return c
