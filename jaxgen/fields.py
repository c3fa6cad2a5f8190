"""What the fields of a config may hold: the range of every number, how many numbers a tuple takes, and which fields are paths."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxgen.errors import InputError

LARGEST = 2**31 - 1  # what seeds, counters and indices hold on every backend
_FINITE = 1e38  # in float32


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above` (not `low` itself) or `below` (not `high` itself) say otherwise."""

    low: float
    high: float = LARGEST
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """False for NaN."""
        return (self.low < value if self.above else self.low <= value) and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        text = f"{'above' if self.above else 'at least'} {self.low:g}"
        if self.high >= LARGEST:
            return f"{text} and finite" if self.high == _FINITE else text
        return f"{text} and {'below' if self.below else 'at most'} {self.high:g}"


ANY = Range(-LARGEST)
ZERO_OR_MORE = Range(0)
ONE_OR_MORE = Range(1)
POSITIVE = Range(0, _FINITE, above=True)
NOT_NEGATIVE = Range(0, _FINITE)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, below=True)
INSIDE = Range(0, 1, above=True, below=True)
OR_MINUS_ONE = Range(-1)  # -1 stands for a value that is worked out
AT_ONCE = Range(0, 1024)  # threads

# Every number of configs/common.py; of a tuple, each of its numbers.
RANGES = {
    "seed": ZERO_OR_MORE,
    "model.adapter_rank": ONE_OR_MORE,
    "model.adapter_alpha": POSITIVE,
    "data.split_seed": OR_MINUS_ONE,
    "data.max_length": ZERO_OR_MORE,
    "data.buckets": ONE_OR_MORE,
    "data.max_shift": ZERO_OR_MORE,
    "data.holdout": BELOW_ONE,
    "data.stride": ZERO_OR_MORE,
    "data.mlm_probability": Range(0, 1, above=True),
    "data.window_bases": ZERO_OR_MORE,
    "data.window": Range(2),
    "data.threads": AT_ONCE,
    "data.prefetch": ONE_OR_MORE,
    "train.steps": ZERO_OR_MORE,
    "train.epochs": ZERO_OR_MORE,
    "train.batch_size": ONE_OR_MORE,
    "train.eval_batch_size": ZERO_OR_MORE,
    "train.accumulate": ONE_OR_MORE,
    "train.learning_rate": NOT_NEGATIVE,
    "train.betas": BELOW_ONE,
    "train.eps": NOT_NEGATIVE,
    "train.weight_decay": NOT_NEGATIVE,
    "train.clip_norm": NOT_NEGATIVE,
    "train.schedule.warmup_steps": ZERO_OR_MORE,
    "train.schedule.warmup_fraction": SHARE,
    "train.schedule.warmup_init": NOT_NEGATIVE,
    "train.schedule.min_lr": NOT_NEGATIVE,
    "train.schedule.min_lr_fraction": SHARE,
    "train.schedule.total_steps": ZERO_OR_MORE,
    "train.ema_decay": BELOW_ONE,
    "train.eval_every": ZERO_OR_MORE,
    "train.eval_batches": ZERO_OR_MORE,
    "train.patience": ZERO_OR_MORE,
    "train.checkpoint_every": ZERO_OR_MORE,
    "train.keep": ONE_OR_MORE,
    "train.log_every": ONE_OR_MORE,
    "embed.layer": ANY,
    "embed.max_length": ZERO_OR_MORE,
    "embed.batch_tokens": ONE_OR_MORE,
    "score.stride": ZERO_OR_MORE,
    "explain.window": ZERO_OR_MORE,
    "explain.plots": ZERO_OR_MORE,
    "generate.samples": ONE_OR_MORE,
    "generate.tokens": ONE_OR_MORE,
    "generate.temperature": NOT_NEGATIVE,
    "generate.top_k": ZERO_OR_MORE,
    "generate.batch_size": ONE_OR_MORE,
    "baseline.max_k": Range(1, 10),  # 4^10 columns
    "baseline.strengths": POSITIVE,
    "baseline.max_order": Range(0, 12),  # 4^12 contexts
    "benchmark.seeds": ZERO_OR_MORE,
    "benchmark.sweep_seeds": ZERO_OR_MORE,
    "benchmark.pack": ONE_OR_MORE,
    "benchmark.leak_k": Range(1, 12),
    "benchmark.leak_jaccard": Range(0, 1, above=True),
    "variants.length": ONE_OR_MORE,
    "variants.shifts": ANY,
    "variants.window": ZERO_OR_MORE,
    "variants.batch_size": ONE_OR_MORE,
    "probe.length": ZERO_OR_MORE,
    "probe.window": ONE_OR_MORE,
    "probe.batch_size": ONE_OR_MORE,
    "probe.strengths": POSITIVE,
    "probe.seeds": ZERO_OR_MORE,
    "probe.rows": Range(2),
    "probe.validation": INSIDE,
    "probe.n_jobs": AT_ONCE,
    "probe.simulated.train": ONE_OR_MORE,
    "probe.simulated.test": ONE_OR_MORE,
    "probe.simulated.length": ONE_OR_MORE,
    "probe.simulated.window": ONE_OR_MORE,
    "probe.simulated.flips": Range(0, 0.5, below=True),
    "perturbation.folds": Range(2),
    "perturbation.top_genes": ZERO_OR_MORE,
    "perturbation.max_genes": ZERO_OR_MORE,
    "perturbation.max_perturbations": ZERO_OR_MORE,
    "perturbation.bootstrap": ONE_OR_MORE,
    "perturbation.top_k": ONE_OR_MORE,
    "perturbation.simulated.perturbations": ONE_OR_MORE,
    "perturbation.simulated.genes": ONE_OR_MORE,
    "perturbation.simulated.length": ONE_OR_MORE,
    "perturbation.lel.ridge": POSITIVE,
    "perturbation.lel.n_components": ONE_OR_MORE,
    "perturbation.mlp.hidden": ONE_OR_MORE,
    "perturbation.mlp.dropout": BELOW_ONE,
    "perturbation.mlp.learning_rate": NOT_NEGATIVE,
    "perturbation.mlp.weight_decay": NOT_NEGATIVE,
    "perturbation.mlp.batch_size": ONE_OR_MORE,
    "perturbation.mlp.epochs": ONE_OR_MORE,
    "perturbation.mlp.patience": ONE_OR_MORE,
    "perturbation.concat.hidden": ONE_OR_MORE,
    "perturbation.concat.learning_rate": NOT_NEGATIVE,
    "perturbation.concat.weight_decay": NOT_NEGATIVE,
    "perturbation.concat.batch_size": ONE_OR_MORE,
    "perturbation.concat.epochs": ONE_OR_MORE,
    "perturbation.concat.patience": ONE_OR_MORE,
    "perturbation.xgboost.n_estimators": ONE_OR_MORE,
    "perturbation.xgboost.n_jobs": AT_ONCE,
    "perturbation.ia3.learning_rate": NOT_NEGATIVE,
    "perturbation.ia3.epochs": ONE_OR_MORE,
    "perturbation.ia3.batch_size": ONE_OR_MORE,
    "perturbation.ia3.buckets": ONE_OR_MORE,
    "mesh.data": OR_MINUS_ONE,
    "mesh.fsdp": OR_MINUS_ONE,
    "mesh.tensor": OR_MINUS_ONE,
    "mesh.sequence": OR_MINUS_ONE,
}
EXACTLY = {"train.betas": 2}  # numbers of a tuple; all others take one or more

PATHS = ("workdir", "init_from", "paths", "compile_cache", "model.tokenizer", "variants.vcf", "perturbation.folds_file")
PATHS += ("perturbation.ia3.init_from", *(f"data.{name}" for name in ("path", "fasta", "bed", "cache", "gtf", "gene_list")))


def expand_paths(config: ConfigDict) -> None:
    """Replaces a leading ~, which a shell leaves alone behind a `=`, by the home folder."""
    for field, value in _present(config, PATHS):
        *parents, name = field.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[name] = os.path.expanduser(value) if isinstance(value, str) else tuple(map(os.path.expanduser, value))


def check_ranges(config: ConfigDict) -> None:
    """Refuses numbers that no job could work with.

    Raises:
      InputError: a number outside its range, or too few or too many of them; the field, the value and the range are named.
    """
    for field, value in _present(config, RANGES):
        values = value if isinstance(value, list | tuple) else (value,)
        shown, exactly = ",".join(map(str, values)), EXACTLY.get(field)
        if exactly and len(values) != exactly:
            raise InputError(f"{field}={shown} must be {exactly} numbers separated by commas, not {len(values)}")
        if not values:
            raise InputError(f"{field} is empty: list at least one number")
        if not all(x in RANGES[field] for x in values):
            most = f" and at most {LARGEST}" if max(values) > LARGEST == RANGES[field].high else ""
            raise InputError(f"{field}={shown} must be {RANGES[field]}{most}")


def _present(config: ConfigDict, fields: Any) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of those fields that the config has; one by somebody else may lack groups."""
    for field in fields:
        node: Any = config
        for name in field.split("."):
            node = node.get(name) if isinstance(node, ConfigDict) else None
        if node is not None:
            yield field, node
