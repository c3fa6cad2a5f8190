"""The first run: a small HyenaDNA learns simulated promoters from scratch on a laptop CPU (data.path= for a real table).

    make quickstart
"""

from ml_collections import ConfigDict

from configs import finetune
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """No variant. With --config.data.path=FOLDER_OR_TABLE the same run trains on real sequences and labels."""
    split_variant(variant)
    c = finetune.get_config("cnn_smoke,simulated_promoters")
    c.train.epochs = 12
    return c
