"""Every field of every run, with its default. The other files in this folder show only what they change.

Override any field on the command line: `--config.train.learning_rate=1e-3`. Tuples are comma-separated: `--config.paths=a,b`.
"""

from ml_collections import ConfigDict

from jaxgen.config import split_variant


def get_config(variant: str = "") -> ConfigDict:
    """The defaults (this file takes no variant)."""
    split_variant(variant)
    c = ConfigDict()
    c.job = ""  # what to do: see `python -m jaxgen.main --help`
    c.seed = 42  # initial weights, data order, dropout, splits
    c.workdir = ""  # results go here; set by --workdir; a folder or gs://bucket/path
    c.init_from = ""  # start from these weights: checkpoint folder, hub id, or workdir of an earlier run; empty = from scratch
    c.paths = ()  # inputs of jobs that take several folders (verify)
    c.precision = "float32"  # compute dtype: float32 or bfloat16; parameters, norms, FFTs and losses are always float32
    c.compile_cache = "auto"  # folder of compiled programs; auto = ~/.cache/jaxgen/xla (or $JAXGEN_CACHE), empty = off

    c.model = ConfigDict()
    c.model.name = ""  # FAMILY or FAMILY_SIZE, e.g. hyenadna_tiny_1k
    c.model.config = ConfigDict()  # fields of the architecture to change, e.g. --config.model.config.n_layer=4
    c.model.remat = ""  # what the backward pass recomputes: none, dots, full; empty = the model's own default
    c.model.freeze = ()  # regular expressions of parameter paths that are not trained, e.g. ^backbone
    c.model.masked = True  # keep padding out of backbone and pooling; false = as the published pipelines

    c.head = ConfigDict()
    c.head.pooling = "mean"  # mean, max, sum, first, last

    c.data = ConfigDict()
    c.data.task = ""  # table, simulated_promoters, ... ; empty for pre-training
    c.data.path = ""  # table task: folder with train/dev/test tables, or one table
    c.data.sequence_column = "sequence"  # table task: name of the column with DNA
    c.data.label_column = "label"  # table task: name of the column with the label or value
    c.data.kind = "classification"  # table task: classification or regression
    c.data.split_seed = -1  # seed of splits that the data does not bring; -1 = seed
    c.data.max_length = 0  # tokens per example; 0 = longest training sequence, rounded up to a multiple of 8
    c.data.rc_aug = False  # reverse-complement training examples with probability 1/2
    c.data.max_shift = 0  # move training examples by a random number of bases up to this, either way
    c.data.conjoin_train = False  # train on both strands of every example, predictions averaged
    c.data.conjoin_eval = False  # average the predictions of both strands in validation and test
    c.data.fasta = ""  # pre-training: FASTA, plain or gzipped or bgzipped
    c.data.bed = ""  # pre-training: BED with a split column; empty = hold out the last share of every contig
    c.data.holdout = 0.1  # pre-training without BED: share of every contig held out for validation and test
    c.data.stride = 0  # pre-training without BED: distance of training windows; 0 = max_length
    c.data.objective = "ntp"  # pre-training: ntp (next token) or mlm (masked)
    c.data.mlm_probability = 0.15  # share of positions that are predicted under mlm
    c.data.cache = ""  # folder for memory-mapped genomes; empty = ~/.cache/jaxgen (or $JAXGEN_CACHE)
    c.data.threads = 2  # reader threads
    c.data.prefetch = 4  # batches read ahead

    c.train = ConfigDict()
    c.train.steps = 0  # optimiser updates; 0 = from epochs
    c.train.epochs = 0  # passes over the training split; set steps or epochs
    c.train.batch_size = 64  # examples per update, over all devices and processes
    c.train.eval_batch_size = 0  # examples per evaluation step; 0 = batch_size
    c.train.accumulate = 1  # micro-batches per update
    c.train.learning_rate = 1e-3  # peak
    c.train.betas = (0.9, 0.999)  # AdamW
    c.train.eps = 1e-8  # AdamW
    c.train.weight_decay = 0.1  # AdamW, decoupled; never on biases, norms, embeddings and implicit filters
    c.train.no_decay = ()  # further parameter paths (regular expressions) without weight decay
    c.train.lr_scale = ()  # learning-rate factors by parameter path, "pattern=factor", e.g. ^head=10; the first match counts
    c.train.clip_norm = 1.0  # largest global gradient norm; 0 = no clipping
    c.train.schedule = ConfigDict()
    c.train.schedule.name = "cosine_timm"  # constant, linear, cosine, cosine_timm
    c.train.schedule.warmup_steps = 0.0  # linear warm-up, in updates
    c.train.schedule.warmup_fraction = 0.0  # the same as a share of the run
    c.train.schedule.warmup_init = 1e-6  # learning rate at update 0
    c.train.schedule.min_lr = 0.0  # floor
    c.train.schedule.min_lr_fraction = 0.0  # the same as a share of the peak
    c.train.schedule.total_steps = 0  # length of the schedule; 0 = length of the run
    c.train.schedule.warmup_prefix = False  # cosine starts after the warm-up instead of underneath it
    c.train.ema_decay = 0.0  # evaluate an exponential moving average of the weights; 0 = off
    c.train.nan_policy = "stop"  # a non-finite loss or gradient: stop with a report, or skip the update and count it
    c.train.eval_every = 0  # updates between evaluations on the validation split; 0 = once per epoch or a tenth of the run
    c.train.eval_batches = 0  # batches per evaluation; 0 = the whole split
    c.train.select = ""  # validation metric that chooses the best checkpoint; empty = the task's
    c.train.patience = 0  # evaluations without improvement before stopping; 0 = never stop early
    c.train.checkpoint_every = 0  # updates between checkpoints; 0 = at evaluations
    c.train.keep = 2  # newest checkpoints kept, besides the best
    c.train.log_every = 10  # updates between lines of metrics.jsonl
    c.train.report = True  # write plots to report/

    c.baseline = ConfigDict()
    c.baseline.max_k = 5  # k-mers of 1 ... max_k bases
    c.baseline.strengths = (0.1, 1.0)  # inverse L2 strengths of the logistic regression, chosen on the validation split
    c.baseline.max_order = 8  # Markov models of order 0 ... max_order

    c.mesh = ConfigDict()
    c.mesh.data = -1  # devices along each axis; one may be -1 = the rest
    c.mesh.fsdp = 1  # parameters and optimiser state sharded, batch too
    c.mesh.tensor = 1  # hidden features sharded
    c.mesh.sequence = 1  # positions sharded
    return c
