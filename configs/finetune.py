"""Fine-tune or train from scratch: configs/finetune.py:MODEL,TASK --config.data.path=FOLDER [--config.init_from=WEIGHTS].

From scratch on gue/prom_core_notata Mamba, Caduceus-Ph and -PS reach a test MCC of 0.65, where k-mers reach 0.595, in 5 to 10 min per run
on busy CPU cores. docs/results.md has more, and `python -m benchmarks.results` the settings:

    python -m jaxgen.main --config=configs/finetune.py:mamba_smoke,table --config.data.path=FOLDER --workdir=RUN

A published size takes what was published for it on the task (configs/_recipes.py); `_smoke` sizes and `,TASK` take what stands below.
"""

from ml_collections import ConfigDict

from configs import common
from configs._recipes import apply_published
from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL,TASK (default hyenadna_smoke,simulated_promoters; `,TASK` takes the model of init_from)."""
    model, task = split_variant(variant, "model", "task")
    c = common.get_config()
    c.job = "finetune"
    c.model.name = model or ("" if task else "hyenadna_smoke")
    c.data.task = task or "simulated_promoters"
    c.data.rc_aug = False
    c.train.epochs = 10
    c.train.batch_size = 128
    # The published recipe (Caduceus / HyenaDNA fine-tuning): warm-up 1 % of the run, floor at a tenth of the peak.
    c.train.learning_rate = 1e-3 if c.model.name.startswith("cnn") else 6e-4
    c.train.schedule.warmup_fraction = 0.01
    c.train.schedule.min_lr_fraction = 0.1
    if not c.model.name.endswith("_smoke"):
        apply_published(c)
    return c
