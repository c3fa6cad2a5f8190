"""Which bases matter: configs/explain.py:MODEL --config.data.path=x.csv --workdir=DIR [--config.init_from=WEIGHTS or a run].

16 sequences of 128 bases, by both methods, with the quickstart's run: 45 s on two busy CPU cores (docs/explain.md).
"""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL, which may be left out where init_from says it. Without init_from the weights are random, by seed."""
    (model,) = split_variant(variant, "model")
    c = common.get_config()
    c.job = "explain"
    c.model.name = model
    return c
