"""Fine-tune or train from scratch: MODEL on TASK, e.g. configs/finetune.py:hyenadna_tiny_1k,table --config.data.path=FOLDER."""

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL,TASK (default hyenadna_smoke,simulated_promoters)."""
    model, task = split_variant(variant, "model", "task")
    c = common.get_config()
    c.job = "finetune"
    c.model.name = model or "hyenadna_smoke"
    c.data.task = task or "simulated_promoters"
    c.data.rc_aug = False
    c.train.epochs = 10
    c.train.batch_size = 128
    # The published recipe (Caduceus / HyenaDNA fine-tuning): warm-up 1 % of the run, floor at a tenth of the peak.
    c.train.learning_rate = 1e-3 if c.model.name.startswith("cnn") else 6e-4
    c.train.schedule.warmup_fraction = 0.01
    c.train.schedule.min_lr_fraction = 0.1
    return c
