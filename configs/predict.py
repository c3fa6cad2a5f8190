"""Apply a fine-tuned model: configs/predict.py --config.init_from=RUN --config.data.path=TABLE_OR_FASTA --workdir=DIR."""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """No variant: the workdir `init_from` of a finetune run says which model. Rows are numbered unless embed.id_column names ids."""
    split_variant(variant)
    c = common.get_config()
    c.job = "predict"
    c.embed.id_column = ""
    c.embed.too_long = "truncate"  # as in training
    return c
