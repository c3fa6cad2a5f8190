"""Pre-train MODEL on a genome, by its published recipe: configs/pretrain.py:MODEL --config.data.fasta=FASTA [--config.data.bed=BED].

mamba_smoke on 1 Mb of human chr20: 1.322 nats per base on held-out DNA, in 44 s of CPU time (docs/pretraining.md). Sizes as published are
recipes that have not been run here in full.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import common
from jaxgen.config import split_variant

TOKENS_PER_STEP = 1 << 20
_VALID_INTERVALS = 2213  # of 2^20 bases each, in the published split of hg38


def get_config(variant: str = "") -> ConfigDict:
    """variant: MODEL (default hyenadna_smoke). Sizes other than smoke are recipes as published, not run here in full."""
    (model,) = split_variant(variant, "model")
    c = common.get_config()
    c.job = "pretrain"
    c.model.name = model or "hyenadna_smoke"
    family = max((name for name in RECIPES if c.model.name.startswith(name)), key=len, default="")
    RECIPES[family](c, c.model.name.removeprefix(family).removeprefix("_"))
    if c.model.name.endswith("_smoke"):
        _smoke(c)
    return c


def _hg38(c: ConfigDict, length: int, learning_rate: float, steps: int = 10_000) -> None:
    """The pipeline of the Caduceus paper: 2^20 tokens per update, warm-up of 10 %, five evaluations on an eighth of the split."""
    c.data.max_length = length
    c.data.rc_aug = True
    c.train.steps = steps
    c.train.batch_size = TOKENS_PER_STEP // length
    c.train.eval_batch_size = 2 * c.train.batch_size
    c.train.eval_every = steps // 5
    c.train.eval_batches = _VALID_INTERVALS // (2 * 8)
    c.train.checkpoint_every = 500
    c.train.learning_rate = learning_rate
    c.train.betas = (0.9, 0.95)
    c.train.schedule.warmup_fraction = 0.1
    c.train.schedule.warmup_prefix = True
    c.train.schedule.min_lr = 1e-4


def _length(size: str, default: int) -> int:
    """Tokens that the name of a size says, e.g. 131k, rounded down to a power of two as the windows of the pipeline must be."""
    for part in size.split("_"):
        if part[:-1].isdecimal() and part[-1] in "km":
            tokens = int(part[:-1]) * (1024 if part[-1] == "k" else 1_000_000)
            return 1 << (tokens.bit_length() - 1)
    return default


def _caduceus_ph(c: ConfigDict, size: str) -> None:
    length = _length(size, 1024)
    _hg38(c, length, 8e-3, 50_000 if length == 1 << 17 else 10_000)


def _caduceus_ps(c: ConfigDict, size: str) -> None:
    _caduceus_ph(c, size)
    c.data.rc_aug = False  # the model is equivariant


def _mamba(c: ConfigDict, size: str) -> None:
    """The tokenization study at 4k: batches of 256, byte pairs of 128 at its smallest rate, whose floor it set above the peak."""
    _hg38(c, _length(size, 1024), 8e-3)
    if size.startswith("4k"):
        c.train.batch_size = 128 if size == "4k_bpe" else 256
        c.train.eval_batch_size = 2 * c.train.batch_size
    if size == "4k_bpe":
        c.train.learning_rate = 8e-6
        c.train.schedule.min_lr = 0.0


def _hyenadna(c: ConfigDict, size: str) -> None:
    _hg38(c, _length(size, 1024), 6e-4)


def _nt(c: ConfigDict, size: str) -> None:
    """Dalla-Torre et al., not checked against the paper: 2^20 tokens per update. The rate stays after its warm-up, where theirs decays."""
    _hg38(c, 2048 if c.model.name.startswith("nt_v2") else 1000, 1e-4, 300_000)
    c.data.rc_aug = False
    c.train.betas = (0.9, 0.999)
    c.train.schedule.name = "constant"
    c.train.schedule.warmup_prefix = False
    c.train.schedule.warmup_fraction = 0.05
    c.train.schedule.warmup_init = 5e-5
    c.train.schedule.min_lr = 0.0


def _bert(c: ConfigDict, length: int, batch_size: int, steps: int) -> None:
    """What DNABERT and DNABERT-2 share: betas, epsilon and a linear schedule."""
    c.data.max_length = length
    c.train.steps = steps
    c.train.batch_size = batch_size
    c.train.eval_every = steps // 5
    c.train.eval_batches = 100
    c.train.checkpoint_every = 500
    c.train.betas = (0.9, 0.98)
    c.train.eps = 1e-6
    c.train.schedule.name = "linear"
    c.train.schedule.warmup_init = 0.0


def _dnabert(c: ConfigDict, size: str) -> None:
    """Its script: every position drawn with 0.025 (6-mers) masks as many tokens as a base is in; 15 % for the other sizes too."""
    k = int(size[0]) if size[:1].isdecimal() else (3 if size == "smoke" else 6)
    _bert(c, 512, 2000, 200_000)
    c.data.mlm_probability = 0.15 / k
    c.train.learning_rate = 4e-4
    c.train.weight_decay = 0.01
    c.train.schedule.warmup_fraction = 0.05


def _dnabert2(c: ConfigDict, size: str) -> None:
    """Zhou et al., not checked against the paper: 4,096 rows of 128 tokens; 512 bases fill most of a row."""
    _bert(c, 128, 4096, 500_000)
    c.data.window_bases = 512
    c.train.learning_rate = 5e-4
    c.train.weight_decay = 1e-5
    c.train.schedule.warmup_fraction = 0.06


def _gpt_neo(c: ConfigDict, size: str) -> None:
    """The pipeline of HyenaDNA; no GPT-Neo of DNA was published."""
    _hg38(c, 512, 6e-4)
    c.data.window_bases = 2048


RECIPES: dict[str, Callable[[ConfigDict, str], None]] = {
    "caduceus_ph": _caduceus_ph,
    "caduceus_ps": _caduceus_ps,
    "dnabert": _dnabert,
    "dnabert2": _dnabert2,
    "gpt_neo": _gpt_neo,
    "hyenadna": _hyenadna,
    "mamba": _mamba,
    "nt_v1": _nt,
    "nt_v2": _nt,
    "": _hyenadna,
}


def _smoke(c: ConfigDict) -> None:
    """A minute or two on two CPU cores."""
    c.data.max_length = 256
    c.data.window_bases = 1024 if c.data.window_bases else 0
    c.train.steps = 200
    c.train.batch_size = 16
    c.train.eval_batch_size = 32
    c.train.eval_every = c.train.checkpoint_every = 50
    c.train.eval_batches = 8
    c.train.learning_rate = max(c.train.learning_rate, 1e-3)
    c.train.schedule.warmup_fraction = 0.1
