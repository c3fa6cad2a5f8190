"""Many models on many tasks and seeds, one table: configs/benchmark.py[:gue|genomic_benchmarks|nt|nt_revised][,study].

`:gue,smoke` on five small tasks: 120 runs in 3.9 hours on two busy CPU cores; docs/results.md has the table and the command.
"""

from ml_collections import ConfigDict

from configs import finetune
from configs._recipes import PUBLISHED, STUDY
from jaxgen.config import split_variant
from jaxgen.data.tasks.suites import SUITES
from jaxgen.errors import InputError, nearest

# Small models from scratch on two CPU cores: what docs/results.md reports.
SMOKE = (
    "*@*:data.rc_aug=true",
    "*@*:data.conjoin_eval=true",
    "*@*:train.batch_size=32",
    "*@*:train.eval_batch_size=256",
    "*@*:train.learning_rate=2e-3",
    "*@*:train.schedule.warmup_fraction=0.1",
    "*@*:train.schedule.min_lr_fraction=0.01",
    "*@*:train.epochs=2",
    "*@*:data.buckets=1",
    "*@gue/mouse_3:train.epochs=5",
    "*@gue/prom_core_tata:train.epochs=5",
    "*@gue/mouse_0:train.epochs=3",
    "*@gue/prom_300_tata:train.epochs=3",
    "cnn*@*:train.batch_size=64",
    "cnn*@*:train.weight_decay=1.0",
    "cnn*@*:train.learning_rate=4e-3",
    "cnn*@*:train.epochs=8",
    "cnn*@gue/mouse_3:train.epochs=20",
    "hyenadna*@gue/mouse_3:train.epochs=15",
    "mamba*@*:train.learning_rate=4e-3",
    "mamba_bpe@*:model.tokenizer=bpe:256",
    "mamba_bpe@*:data.max_shift=6",
    "caduceus*@*:train.learning_rate=4e-3",
    "nt_*@*:train.learning_rate=1e-3",
    "nt_*@*:head.kind=pooled",
    "nt_*@*:data.max_shift=6",
    "dnabert*@*:train.learning_rate=1e-3",
    "dnabert2*@*:head.kind=pooled",
    "dnabert*@*:data.max_shift=6",
)
SMOKE_MODELS = (
    "cnn",
    "hyenadna_smoke",
    "mamba_smoke",
    "mamba_bpe=mamba_smoke",
    "caduceus_ph_smoke",
    "caduceus_ps_smoke",
    "nt_v2_smoke",
    "dnabert2_smoke",
)

SETTINGS = {"": PUBLISHED, "study": (*PUBLISHED, *STUDY), "smoke": SMOKE}


def get_config(variant: str = "") -> ConfigDict:
    """variant: SUITE[,study|,smoke]. A suite brings all its tasks and the published settings; `study` what DNAtokenization chose from its
    trials; `smoke` small models and settings for two CPU cores.
    """
    suite, kind = split_variant(variant, "suite", "settings")
    if suite and suite not in SUITES:
        raise InputError(f"config variant {suite!r}{nearest(suite, SUITES)}")
    if kind not in SETTINGS:
        raise InputError(f"config variant {kind!r}: the second part is study, smoke or nothing")
    c = finetune.get_config("")
    c.job = "benchmark"
    c.benchmark.tasks = tuple(f"{suite}/{name}" for name in SUITES[suite].tasks) if suite else ()
    if kind == "smoke":
        c.benchmark.models, c.benchmark.seeds = SMOKE_MODELS, (1, 2, 3)
    c.benchmark.settings = SETTINGS[kind]
    return c
