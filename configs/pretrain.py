"""Pre-train MODEL on a genome: configs/pretrain.py:MODEL --config.data.fasta=genome.fa [--config.data.bed=splits.bed]."""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL (default hyenadna_smoke). The Caduceus-paper pipeline: 2^20 tokens per step, warm-up 10 %, clip 1."""
    (model,) = split_variant(variant, "model")
    c = common.get_config()
    c.job = "pretrain"
    c.model.name = model or "hyenadna_smoke"
    c.data.max_length = 1024
    c.data.rc_aug = True
    c.train.steps = 10_000
    c.train.batch_size = 1024
    c.train.eval_batch_size = 256
    c.train.betas = (0.9, 0.95)
    c.train.learning_rate = 6e-4
    c.train.schedule.warmup_fraction = 0.1
    c.train.schedule.warmup_prefix = True
    c.train.schedule.min_lr = 1e-4
    c.train.eval_every = 500
    return c
