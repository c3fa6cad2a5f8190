"""What variants change: configs/score_variants.py:MODEL --config.variants.vcf=V.vcf.gz --config.data.fasta=G.fa --config.init_from=W.

520 alleles of phased_8samples_200kb.vcf.gz on 1 Mb of human chr20 by mamba_smoke with random weights: 75 s on two busy CPU cores.
"""

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
