"""The published settings of models on tasks, as rows that benchmark.py and finetune.py take theirs from."""

from ml_collections import ConfigDict

from jaxgen.config import matching, set_field


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
mamba_*bpe* gue/*,nt/*,nt_revised/*     train.learning_rate=1e-4
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
mamba_*bpe* *    train.learning_rate=1e-4
nt_*        *    train.learning_rate=1e-4
dnabert*,gpt_neo* *  train.learning_rate=3e-5
""")


def apply_published(config: ConfigDict) -> None:
    """Sets what was published for `model.name` on `data.task`."""
    for setting in matching(PUBLISHED, config.model.name, config.data.task):
        set_field(config, *setting.split("=", 1))
