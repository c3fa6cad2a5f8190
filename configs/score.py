"""Likelihood of sequences: configs/score.py:MODEL --config.data.path=tf_sequences.csv --workdir=DIR [--config.init_from=WEIGHTS].

The 613 test promoters of gue/prom_core_tata by hyenadna_smoke: 30 s on two busy CPU cores, nearly all start and compilation.
"""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL, which may be left out where init_from says it. Without init_from the weights are random, by seed."""
    (model,) = split_variant(variant, "model")
    c = common.get_config()
    c.job = "score"
    c.model.name = model
    return c
