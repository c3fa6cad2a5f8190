"""What variants change: configs/score_variants.py:MODEL --config.variants.vcf=V.vcf.gz --config.data.fasta=G.fa --config.init_from=W."""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL, which may be left out where init_from says it. Without init_from the weights are random, by seed."""
    (model,) = split_variant(variant, "model")
    c = common.get_config()
    c.job = "score_variants"
    c.model.name = model
    return c
