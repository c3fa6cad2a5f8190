"""Every field of every run, with its default. The other files in this folder show only what they change.

Override any field on the command line: `--config.train.learning_rate=1e-3`. Tuples are comma-separated: `--config.paths=a,b`. Commas in
brackets belong to an entry, such as `(mixer|mlp)` or `a{1,2}`; any other entry with commas stands in quotes, or the whole is a Python list:
`--config.benchmark.settings='"*@*:train.betas=0.9,0.95","*@*:train.epochs=3"'`. jaxgen/fields.py says between what bounds numbers lie.
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
    c.faithful = False  # reproduce the published scripts with their leaks and quirks (crossval, probe_variants); false = sound, see docs
    c.compile_cache = "auto"  # folder of compiled programs; auto = ~/.cache/jaxgen/xla (or $JAXGEN_CACHE), empty = off

    c.model = ConfigDict()
    c.model.name = ""  # FAMILY or FAMILY_SIZE, e.g. hyenadna_tiny_1k
    c.model.config = ConfigDict()  # fields of the architecture to change, e.g. --config.model.config.n_layer=4
    c.model.tokenizer = ""  # tokenizer.json, vocab.txt or their folder; bpe:N = learn N tokens; empty = the checkpoint's or published one
    c.model.remat = ""  # what the backward pass recomputes: none, dots, full; empty = the model's own default
    c.model.freeze = ()  # regular expressions of parameter paths that are not trained, e.g. ^backbone
    c.model.adapter = "full"  # what is trained: full (everything), probe (the head), ia3 or lora (an adapter and the head)
    c.model.adapter_targets = ()  # public names of linear layers, or ends of them, e.g. attention.self.key; empty = all in the blocks
    c.model.adapter_feedforward = ()  # ia3: the targets that are scaled on their input; the others on their output
    c.model.adapter_rank = 8  # lora
    c.model.adapter_alpha = 16.0  # lora: its product counts alpha / rank times
    c.model.masked = True  # keep padding out of backbone and pooling; false = as the published pipelines

    c.head = ConfigDict()
    c.head.kind = "auto"  # own (the model's published classification head), pooled (one linear layer), auto = own where there is one
    c.head.pooling = "mean"  # of the pooled head: mean, max, sum, first, last

    c.data = ConfigDict()
    c.data.task = ""  # table, simulated_promoters, gue/tf_0, genomic_benchmarks/..., nt/..., nt_revised/...; empty for pre-training
    c.data.path = ""  # table task: folder with train/dev/test tables, or one table; suites: their folder, the task's, or one above both
    c.data.sha256 = ""  # prepare: checksum of the archive data.path, in hexadecimal; empty = not checked
    c.data.sequence_column = "sequence"  # table task: name of the column with DNA
    c.data.label_column = "label"  # table task: name of the column with the label or value
    c.data.kind = "classification"  # table task: classification or regression
    c.data.split_seed = -1  # seed of splits that the data does not bring; -1 = seed
    c.data.max_length = 0  # tokens per example; 0 = longest sequence, to a multiple of 8, or less where a suite says so
    c.data.buckets = 16  # most padded lengths that a table of many lengths gets, as few as leave < 5 % padding; 1 = max_length for all
    c.data.rc_aug = False  # reverse-complement training examples with probability 1/2
    c.data.max_shift = 0  # move training examples by a random number of bases up to this, either way
    c.data.conjoin_train = False  # train on both strands of every example, predictions averaged
    c.data.conjoin_eval = False  # average the predictions of both strands in validation and test
    c.data.fasta = ""  # pre-training: FASTA, plain or gzipped or bgzipped
    c.data.bed = ""  # pre-training: BED with a split column; empty = hold out the last share of every contig
    c.data.holdout = 0.1  # pre-training without BED: share of every contig held out for validation and test
    c.data.stride = 0  # pre-training without BED: distance of training windows; 0 = max_length
    c.data.objective = ""  # pre-training: ntp (next token) or mlm (masked); empty = ntp for causal models, mlm for all others
    c.data.mlm_probability = 0.15  # share of positions drawn under mlm; DNABERT masks k neighbouring tokens for each
    c.data.window_bases = 0  # pre-training on k-mers or byte pairs: bases per window; 0 = what fills max_length k-mers, else max_length
    c.data.length_warmup = ()  # pre-training: stages "STEPS:LENGTH" before max_length, as many tokens per update, e.g. 500:1024,500:2048
    c.data.cache = ""  # folder for memory-mapped genomes; empty = ~/.cache/jaxgen (or $JAXGEN_CACHE)
    c.data.gtf = ""  # prepare: annotation of data.fasta; windows around gene starts are written to the workdir
    c.data.gene_list = ""  # prepare: text file with names or ids of the genes to take from data.gtf; empty = all
    c.data.window = 12_000  # prepare: bases around a gene start, half of them on either side
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
    c.train.track = ""  # project of Weights & Biases that gets the numbers, too (extra `track`); WANDB_MODE=offline keeps them here

    # embed: one vector per sequence of data.path, a table with ids or a FASTA. score reads the same fields but name, files, layer, pooling,
    # dtype and special_tokens; generate reads id_column and duplicates, predict id_column, too_long and batch_tokens.
    c.embed = ConfigDict()
    c.embed.name = ""  # of the files; empty = the model's name
    c.embed.files = ConfigDict()  # names in the workdir; {name}, {pooling}, {strand} and {layer} are filled in
    c.embed.files.embeddings = "{name}_embeddings.npy"  # (sequences, width), rows in the order of the input
    c.embed.files.ids = "{name}_ids.npy"  # unicode, one per row
    c.embed.files.index = "{name}_gene_index.txt"  # the same as text, one per line
    c.embed.files.offsets = "{name}_offsets.npy"  # pooling none: tokens of sequence i are the rows offsets[i] ... offsets[i + 1]
    c.embed.id_column = "gene_id"  # table: name of the column with ids, empty = rows are numbered; sequences: data.sequence_column
    c.embed.duplicates = "error"  # ids that occur again: error, or last = the last row of an id counts
    c.embed.layer = -1  # which of the model's hidden states: 0 = the embedding, -1 = the last, after the final norm
    c.embed.pooling = "mean"  # over real tokens, special ones included: mean, max, cls (first), last; none = all tokens
    c.embed.strand = "forward"  # forward, rc (reverse complement), average of both
    c.embed.dtype = "float32"  # of the file: float32 or float16
    c.embed.special_tokens = True  # sequences stand between the tokenizer's special tokens
    c.embed.max_length = 0  # most tokens, special ones included; 0 = what the model takes
    c.embed.too_long = "error"  # longer sequences: error, truncate (counted), chunk (windows, averaged by their tokens)
    c.embed.batch_tokens = 32768  # token positions per batch, padding included, over all devices

    c.score = ConfigDict()  # score: log-likelihood of every sequence of data.path, for masked models the pseudo-log-likelihood
    c.score.stride = 0  # masked models: hide every stride-th token at a time, in so many passes; 0 = one token at a time

    # explain: which bases of the sequences of data.path matter, a table with ids, a FASTA, or a BED of regions of data.fasta. It reads
    # embed.id_column, duplicates, strand, max_length and batch_tokens too.
    c.explain = ConfigDict()
    c.explain.methods = ("ism", "grad_x_input")  # in-silico mutagenesis (all three other bases everywhere), gradient x input
    c.explain.window = 0  # bases around the middle that are mutated; 0 = all
    c.explain.output = ""  # number of the class or output of a head; empty = predicted class less the mean of the others, or likelihood
    c.explain.plots = 8  # sequences, from the first on, that get a figure

    c.generate = ConfigDict()  # generate: continuations of the sequences of data.path, a table with ids or a FASTA
    c.generate.prompt = ""  # DNA to continue in place of data.path
    c.generate.samples = 1  # continuations of each prompt
    c.generate.tokens = 256  # tokens of a continuation
    c.generate.temperature = 1.0  # of the softmax; 0 = always the most probable token
    c.generate.top_k = 0  # draw among the k most probable tokens; 0 = all
    c.generate.batch_size = 64  # continuations at a time, over all devices

    c.baseline = ConfigDict()
    c.baseline.max_k = 5  # k-mers of 1 ... max_k bases
    c.baseline.strengths = (0.1, 1.0)  # inverse L2 strengths of the k-mer regression, chosen on the validation split
    c.baseline.max_order = 8  # Markov models of order 0 ... max_order

    c.benchmark = ConfigDict()  # benchmark: every model on every task with every seed; data.path holds the folders of the suites
    c.benchmark.models = ()  # FAMILY or FAMILY_SIZE, or LABEL=MODEL to have one model twice
    c.benchmark.tasks = ()  # such as gue/tf_0; TASK=PATH for data of its own, NAME=PATH for your own tables under any NAME
    c.benchmark.seeds = (1, 2, 3, 4, 5)  # initial weights, data order, and splits that the data do not bring
    c.benchmark.settings = ()  # MODELS@TASKS:field=value with * for anything, in order, e.g. mamba*@gue/*:train.epochs=3
    c.benchmark.overrides = ()  # the same, after the settings that a config brings
    c.benchmark.sweep = ()  # tried first, the best on validation is run: MODELS@TASKS:field=v1|v2, e.g. *@*:train.learning_rate=1e-3|3e-3
    c.benchmark.sweep_seeds = (1,)  # seeds of the trials, whose validation metrics are averaged
    c.benchmark.share = "auto"  # i/n: every n-th run or pack from the i-th on; auto = all, or as launch/local.py, SLURM or Kubernetes say
    c.benchmark.pack = 1  # seeds of one model and task that are trained together in one program, divided over the devices
    c.benchmark.dry_run = False  # list the runs and stop
    c.benchmark.kmer = True  # k-mers and a linear model beside every score; see baseline
    c.benchmark.cnn = True  # the GenomicBenchmarks CNN beside every score: trained too where no CNN is among the models
    c.benchmark.leaks = True  # find test sequences that train or dev holds too, and score without them
    c.benchmark.leak_k = 8  # bases per k-mer of the Jaccard index
    c.benchmark.leak_jaccard = 0.7  # index from which a test sequence counts as known

    c.variants = ConfigDict()  # score_variants: what the alleles of a VCF change, in a genome data.fasta
    c.variants.vcf = ""  # VCF or BCF, plain or bgzipped, in any order
    c.variants.length = 1024  # bases of a window, with the variant in the middle
    c.variants.strand = "average"  # forward, rc, average of both
    c.variants.shifts = (0,)  # columns by which the variant is moved from the middle; scores are averaged over them
    c.variants.window = 0  # bases around the variant whose hidden states are averaged for the distances; 0 = the whole window
    c.variants.batch_size = 32  # alleles per step, over all devices
    c.variants.write_vcf = False  # also write the VCF with INFO fields JG_LLR, JG_L2, ...

    # probe_variants: does a variant change expression? Tables train and test in the folder data.path; empty = simulated.
    c.probe = ConfigDict()
    c.probe.length = 0  # bases of a window, the variant in the middle; 0 = the sequences of the tables as they are
    c.probe.window = 1536  # bases around the variant whose hidden states are averaged
    c.probe.batch_size = 8  # variants per step, over all devices
    c.probe.zero_shot = True  # also log-likelihood ratios, for which a masked model reads every strand once more
    c.probe.streams = "auto"  # strands that the SVM reads: forward, average, average_test (average in test alone), auto = as published
    c.probe.use_tissue = True  # the number of the tissue is an input of the SVM
    c.probe.strengths = (1.0, 5.0, 10.0)  # values of C
    c.probe.seeds = (1, 2, 3, 4, 5)  # of the training rows
    c.probe.rows = 5000  # training rows per seed, with replacement where a bucket of distances has fewer
    c.probe.validation = 0.2  # share of train, in whole chromosomes, that chooses C; faithful chooses it on test
    c.probe.n_jobs = 0  # SVMs fitted at the same time; 0 = one per core
    c.probe.simulated = ConfigDict()  # what is simulated when data.path is empty
    c.probe.simulated.train = 1500  # rows
    c.probe.simulated.test = 600  # rows
    c.probe.simulated.length = 256  # bases per window
    c.probe.simulated.window = 24  # bases around the variant, in place of probe.window
    c.probe.simulated.flips = 0.05  # share of labels turned at random, which bounds what is attainable

    c.perturbation = ConfigDict()  # crossval: expression changes of genes under perturbation of transcription factors (TFs)
    c.perturbation.methods = ("all",)  # all, or some of lel_nt, lel_pca, mlp_nt, mlp_hyena, concat, xgboost, nt_ia3; mean runs always
    c.perturbation.folds = 5  # cross-validation over perturbations
    c.perturbation.folds_file = "auto"  # pickle, read or else written; auto = cv_splits_{folds}fold_{seed}.pkl of the data or the workdir
    c.perturbation.top_genes = 0  # keep the genes of largest mean |change|; 0 = all
    c.perturbation.max_genes = 0  # keep the first genes; 0 = all
    c.perturbation.max_perturbations = 0  # keep the first perturbations; 0 = all
    c.perturbation.drop_missing = False  # leave out perturbations without embedding or sequence instead of stopping; faithful always does
    c.perturbation.bootstrap = 200  # resamples of perturbations behind the 95 % confidence intervals
    c.perturbation.top_k = 20  # genes of largest |change| whose overlap is reported
    c.perturbation.files = ConfigDict()  # names, looked for in data.path and its folders; see docs/tf_perturbation.md
    c.perturbation.files.targets = ""  # perturbations x genes, CSV or Parquet; empty = the only targets_*.csv or targets*.parquet
    c.perturbation.files.gene_index = "gene_index.txt"  # ids of the genes to keep, in order, one per line; without it all of the targets
    c.perturbation.files.tf_sequences = "tf_sequences.csv"  # names, ids and DNA of the perturbed genes
    c.perturbation.files.nt_tf = "NTv2_50m_tf_embeddings.npy"  # embeddings; the ids of their rows in the next field
    c.perturbation.files.nt_tf_ids = "NTv2_50m_tf_ids.npy"  # .npy, or text with one id per line
    c.perturbation.files.nt_gene = "NTv2_50m_gene_embeddings.npy"  # of the read-out genes
    c.perturbation.files.nt_gene_ids = "NTv2_50m_gene_ids.npy"  # .npy, or text with one id per line
    c.perturbation.files.hyena_tf = "hyenadna_tf_embeddings_mean.npy"  # embeddings of mlp_hyena and xgboost
    c.perturbation.files.hyena_tf_ids = "hyenadna_tf_gene_index.txt"  # .npy, or text with one id per line
    c.perturbation.simulated = ConfigDict()  # what is simulated when data.path is empty
    c.perturbation.simulated.perturbations = 100  # perturbed TFs
    c.perturbation.simulated.genes = 100  # read-out genes; three quarters of the TFs are among them where there is room
    c.perturbation.simulated.length = 600  # bases per sequence
    c.perturbation.lel = ConfigDict()  # lel_nt, lel_pca
    c.perturbation.lel.ridge = 0.1  # lambda on either side
    c.perturbation.lel.n_components = 10  # principal components (lel_pca)

    c.perturbation.mlp = ConfigDict()  # mlp_nt, mlp_hyena
    c.perturbation.mlp.hidden = (1024, 512, 256)  # widths of the hidden layers
    c.perturbation.mlp.dropout = 0.2  # after every hidden layer
    c.perturbation.mlp.learning_rate = 1e-3  # lowered on plateaus of the validation loss
    c.perturbation.mlp.weight_decay = 1e-4  # AdamW, decoupled
    c.perturbation.mlp.batch_size = 512  # perturbations per update
    c.perturbation.mlp.epochs = 200  # at most
    c.perturbation.mlp.patience = 10  # validations (every 5th epoch) without improvement before stopping
    c.perturbation.concat = ConfigDict()  # concat
    c.perturbation.concat.hidden = (512, 256, 128)  # widths of the hidden layers
    c.perturbation.concat.learning_rate = 1e-4  # Adam, constant
    c.perturbation.concat.weight_decay = 1e-4  # L2, in the gradient
    c.perturbation.concat.batch_size = 4096  # pairs of perturbation and gene per update
    c.perturbation.concat.epochs = 100  # at most
    c.perturbation.concat.patience = 10  # epochs without improvement before stopping
    c.perturbation.xgboost = ConfigDict()  # xgboost
    c.perturbation.xgboost.n_estimators = 100  # trees per gene
    c.perturbation.xgboost.n_jobs = 0  # genes fitted at the same time; 0 = one per core
    c.perturbation.ia3 = ConfigDict()  # nt_ia3
    c.perturbation.ia3.model = "nt_v2_smoke"  # FAMILY or FAMILY_SIZE with a classification head of its own; published: nt_v2_50m
    c.perturbation.ia3.init_from = ""  # its weights: checkpoint folder, hub id or workdir; empty = random weights, which stay frozen too
    c.perturbation.ia3.learning_rate = 1e-3  # Adam, constant
    c.perturbation.ia3.epochs = 20  # all are run; the best one predicts
    c.perturbation.ia3.batch_size = 4  # sequences per update
    c.perturbation.ia3.buckets = 4  # most padded lengths

    c.mesh = ConfigDict()
    c.mesh.data = -1  # devices along each axis; one may be -1 = the rest
    c.mesh.fsdp = 1  # parameters and optimiser state sharded, batch too
    c.mesh.tensor = 1  # hidden features sharded
    c.mesh.sequence = 1  # positions sharded
    return c
