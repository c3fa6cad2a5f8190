"""Embed sequences: configs/embed.py:MODEL --config.data.path=tf_sequences.csv --workdir=DIR [--config.init_from=WEIGHTS].

The 613 test promoters of gue/prom_core_tata (70 bases) through nt_v2_50m with random weights: 89 s on two busy CPU cores.
"""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant

# What the readers of the TF-perturbation benchmark look for; for its read-out genes set --config.embed.name=NTv2_50m_gene.
NAMES = {"nt_v2_50m": "NTv2_50m_tf", "nt_v2_500m": "NTv2_500m_tf"}


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL, which may be left out where init_from says it. Without init_from the weights are random, by seed."""
    (model,) = split_variant(variant, "model")
    c = common.get_config()
    c.job = "embed"
    c.model.name = model
    if c.model.name.startswith("hyenadna"):
        c.embed.name = "hyenadna_tf"
        c.embed.files.embeddings = "{name}_embeddings_{pooling}.npy"
    else:
        c.embed.name = NAMES.get(c.model.name, c.model.name)
    return c
