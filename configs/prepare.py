"""Prepare data: --config.data.fasta=GENOME.fa (genome store; with .gtf= gene windows), or :TASK or :SUITE (download, or data.path).

gue/mouse_0 from a local folder, 8,098 rows, to records: 60 s on two busy CPU cores, nearly all of it imports.
"""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: TASK (default none)."""
    (task,) = split_variant(variant, "task")
    c = common.get_config()
    c.job = "prepare"
    c.data.task = task
    return c
