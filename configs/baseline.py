"""Baselines: configs/baseline.py:TASK --config.data.path=FOLDER (k-mers), or --config.data.fasta=GENOME.fa (Markov).

On ../shared/data/gue/prom_core_tata k-mers reach a test MCC of 0.520, in 29 s on two busy CPU cores.
"""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: TASK (default table)."""
    (task,) = split_variant(variant, "task")
    c = common.get_config()
    c.job = "baseline"
    c.data.task = task or "table"
    return c
