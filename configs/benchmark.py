"""Many models on many tasks and seeds, one table: configs/benchmark.py[:gue|genomic_benchmarks|nt|nt_revised] --config.data.path=ROOT.

`:gue,smoke` on mouse_3 and prom_core_tata: 48 small runs in 1.2 hours on two busy CPU cores; docs/results.md has the table.
"""

from ml_collections import ConfigDict

from configs import finetune
from jaxgen.config import split_variant
from jaxgen.data.tasks.suites import SUITES
from jaxgen.errors import InputError, nearest

# Published fine-tuning settings: reference hyperparameters of GenomicBenchmarks, GUE and the Nucleotide Transformer tasks.
PUBLISHED = (
    "*@genomic_benchmarks/*:train.epochs=10",
    "*@nt/*:train.epochs=20",
    "*@nt_revised/*:train.epochs=20",
    "*@gue/*:train.epochs=10",
    "cnn*@*:train.learning_rate=1e-3",
    "cnn*@*:train.batch_size=64",
    "hyenadna*@*:data.rc_aug=true",
    "hyenadna*@*:train.learning_rate=6e-4",
    "mamba*@*:data.rc_aug=true",
    "mamba*@*:train.learning_rate=1e-3",
    "caduceus*@*:train.learning_rate=1e-3",
    "caduceus_ph*@*:data.conjoin_eval=true",
    "caduceus_ph*@*:data.rc_aug=true",
    "caduceus*@nt/*:train.learning_rate=2e-3",
)
# Fine-tuning of pretrained transformers, as in the DNABERT-2 repository: linear decay after a warm-up.
TRANSFORMERS = tuple(
    f"{model}*@*:{setting}"
    for model in ("dnabert", "nt_", "gpt_neo")
    for setting in (
        f"train.learning_rate={'3e-5' if model == 'dnabert' else '1e-4'}",
        "train.batch_size=32",
        "train.weight_decay=0.01",
        "train.schedule.name=linear",
        "train.schedule.warmup_steps=50",
        "train.schedule.warmup_fraction=0",
        "train.schedule.min_lr_fraction=0",
        "train.select=loss",
    )
)
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


def get_config(variant: str = "") -> ConfigDict:
    """variant: SUITE,smoke. A suite brings all its tasks and published settings; `smoke` small models and settings for two CPU cores."""
    suite, size = split_variant(variant, "suite", "smoke")
    if suite and suite not in SUITES:
        raise InputError(f"config variant {suite!r}{nearest(suite, SUITES)}")
    if size not in ("", "smoke"):
        raise InputError(f"config variant {size!r}: the second part is smoke or nothing")
    c = finetune.get_config("")
    c.job = "benchmark"
    c.benchmark.tasks = tuple(f"{suite}/{name}" for name in SUITES[suite].tasks) if suite else ()
    c.benchmark.models = SMOKE_MODELS if size else ()
    c.benchmark.settings = SMOKE if size else (*PUBLISHED, *TRANSFORMERS)
    return c
