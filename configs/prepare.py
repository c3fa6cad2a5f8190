"""Prepare data: --config.data.fasta=GENOME.fa (genome store; with .gtf= gene windows), or :TASK or :SUITE (download, or data.path)."""

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
