"""Many models on many tasks and seeds, one table: configs/benchmark.py[:gue|genomic_benchmarks|nt|nt_revised][,study].

`:gue,smoke` on mouse_3 and prom_core_tata: 48 small runs in 1.2 hours on two busy CPU cores; docs/results.md has the table.
"""

from ml_collections import ConfigDict

from configs import finetune
from jaxgen.config import split_variant
from jaxgen.data.tasks.suites import SUITES
from jaxgen.errors import InputError, nearest


def _settings(table: str) -> tuple[str, ...]:
    """`benchmark.settings` from rows MODELS TASKS FIELD=VALUE ..., with commas between patterns; the last row that matches counts."""
    rows = [row.split() for row in table.strip().splitlines() if not row.startswith("#")]
    return tuple(
        f"{model}@{task}:{field}"
        for models, tasks, *fields in rows
        for model in models.split(",")
        for task in tasks.split(",")
        for field in fields
    )


# The published scripts. Where they try several values (1e-3 and 2e-3 for Mamba and Caduceus, batches of 128, 256 and 512), this takes one.
PUBLISHED = _settings("""
# Caduceus (kuleshov-group/caduceus) and, for GUE and the revised tasks, DNAtokenization (leannmlindsey/DNAtokenization, hydra configs)
*           genomic_benchmarks/*,gue/*  train.epochs=10
*           nt/*,nt_revised/*           train.epochs=20
cnn*        *                           train.learning_rate=1e-3 train.batch_size=64
hyenadna*   *                           train.learning_rate=6e-4 data.rc_aug=true
mamba*      *                           train.learning_rate=1e-3 data.rc_aug=true
caduceus*   *                           train.learning_rate=1e-3
caduceus*   nt/*                        train.learning_rate=2e-3
caduceus_ph* *                          data.conjoin_eval=true data.rc_aug=true
# Transformers: train.py of MAGICS-LAB/DNABERT_2, which DNAtokenization uses too. Batches are those of the scripts on one device.
dnabert*,nt_*,gpt_neo* *     train.batch_size=8 train.weight_decay=0.01 train.schedule.name=linear train.schedule.warmup_fraction=0
dnabert*,nt_*,gpt_neo* *     train.schedule.warmup_steps=50 train.schedule.warmup_init=0 train.schedule.min_lr_fraction=0 train.select=loss
nt_*,gpt_neo*          *     train.learning_rate=1e-4
dnabert*               *     train.learning_rate=3e-5
# GUE, scripts/run_{dnabert1,dnabert2,nt}.sh of DNABERT_2: NT v1 with LoRA. Limits in tokens that cut nothing are left out.
nt_v1*                         gue/*             model.adapter=lora
dnabert*,nt_v1*                gue/*             train.epochs=3 train.eval_every=200
dnabert*,nt_v1*                gue/prom_*        train.epochs=4 train.eval_every=400
dnabert*,nt_v1*                gue/prom_*_tata   train.epochs=10 train.eval_every=200
dnabert*,nt_v1*                gue/splice_*      train.epochs=5
dnabert*,nt_v1*                gue/mouse_*       train.epochs=0 train.steps=1000
dnabert*                       gue/mouse_*,gue/tf_*  train.schedule.warmup_steps=30
nt_v1*                         gue/mouse_*       train.schedule.warmup_steps=100
nt_v1*                         gue/tf_*          train.schedule.warmup_steps=30
dnabert2*                      gue/emp_*         data.max_length=128
nt_v1*                         gue/emp_*         data.max_length=100
dnabert2*,nt_v1*               gue/prom_core_*   data.max_length=20
dnabert2*,nt_v1*               gue/prom_300_*    data.max_length=70
dnabert2*,nt_v1*               gue/splice_*      data.max_length=80
dnabert2*,nt_v1*               gue/mouse_*,gue/tf_*  data.max_length=30
dnabert2*                      gue/virus_covid   train.epochs=8 train.batch_size=32 data.max_length=256
dnabert,dnabert_*              gue/virus_covid   train.epochs=9 train.batch_size=32 data.max_length=512
nt_v1*                         gue/virus_covid   train.epochs=3 model.adapter_alpha=32 train.schedule.warmup_steps=200 data.max_length=256
# GUE, DNAtokenization
gpt_neo*                       gue/*             train.epochs=4 train.eval_every=400 train.learning_rate=3e-5
nt_v2*                         gue/*             train.epochs=6 train.eval_every=400 train.batch_size=32
# GenomicBenchmarks, DNAtokenization; its limits in tokens are the lengths of the suite
dnabert*,nt_*,gpt_neo*         genomic_benchmarks/*  train.epochs=4 train.eval_every=400
dnabert*                       genomic_benchmarks/*  train.batch_size=32
dnabert,dnabert_*              genomic_benchmarks/dummy_mouse_*  data.max_length=512
# Nucleotide Transformer tasks, DNAtokenization: for the revised set; none states the original one. Limits are the old lengths
dnabert*,nt_*,gpt_neo*         nt/*,nt_revised/*  train.epochs=3 train.eval_every=200 train.learning_rate=3e-5
nt_*                           nt/*,nt_revised/*  model.adapter=lora
dnabert*                       nt/*,nt_revised/*  train.batch_size=32
dnabert2*                      nt/*,nt_revised/*  train.batch_size=8 train.epochs=10
gpt_neo*                       nt_revised/*       data.max_length=500
dnabert,dnabert_*              nt_revised/enhancers*         data.max_length=200
dnabert,dnabert_*              nt_revised/splice_sites_all   data.max_length=400
dnabert,dnabert_*              nt*/splice_sites_[ad]*        data.max_length=512
dnabert,dnabert_*              nt_revised/H*                 data.max_length=500
""")
# What DNAtokenization chose most often (best_hyperparameters*.csv of leannmlindsey/DNATokenization_results_analysis), over the above.
# For byte pairs that is 5e-5 to 2e-4, of which this takes the middle; "3 to 4 epochs" of transformers, of no stated task, changes nothing.
STUDY = _settings("""
caduceus*   *    train.learning_rate=1e-3
hyenadna*   *    train.learning_rate=6e-4
mamba*      *    train.learning_rate=2e-4
mamba_bpe*  *    train.learning_rate=1e-4
nt_*        *    train.learning_rate=1e-4
dnabert*,gpt_neo* *  train.learning_rate=3e-5
""")
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
    c.benchmark.models = SMOKE_MODELS if kind == "smoke" else ()
    c.benchmark.settings = SETTINGS[kind]
    return c
