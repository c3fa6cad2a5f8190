"""HyenaDNA on 1 Mb of human chr20: 1.314 nats per base on held-out DNA, order-5 Markov 1.326; 15 min on 2 shared CPU cores.

python -m jaxgen.main --config=configs/pretrain_hyenadna.py --workdir=runs/pretrain
"""

from ml_collections import ConfigDict

from configs import pretrain
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """No variant."""
    split_variant(variant)
    c = pretrain.get_config("hyenadna_smoke")
    c.data.fasta = "../shared/data/human_chr20_1mb/chr20_1mb.fa.gz"
    c.data.max_length = 1024
    c.data.stride = 256  # overlapping windows: every base is seen at several positions
    c.train.steps = 1200
    c.train.batch_size = 8
    c.train.eval_batch_size = 16
    c.train.learning_rate = 3e-3
    c.train.eval_every = 150
    c.train.eval_batches = c.train.checkpoint_every = 0
    return c
