"""Expression changes from the DNA around the perturbed gene: a Nucleotide Transformer with IA3 and its own head, fine-tuned per fold.

Source: molocyxu/10701GenomicEmbeddings `scripts/NT_v2_ia3_regression.py` (peft's IA3, the Hugging Face Trainer's defaults).
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxgen.baselines.method import Fold, FoldResult, Method, PerturbationData, training_rows
from jaxgen.data.buckets import bucket_lengths, bucket_of
from jaxgen.data.sequences import Sequences
from jaxgen.errors import InputError
from jaxgen.heads.predictor import DirectPredictor
from jaxgen.jobs.tokenizer import choose_tokenizer
from jaxgen.jobs.training import ModelSpec, model_spec, say, sized_for, with_pretrained
from jaxgen.jobs.tuning import tuning
from jaxgen.layers.variables import named_arrays
from jaxgen.train.optim import OptimizerConfig, make_optimizer
from jaxgen.train.perturbation_metrics import mean_of_finite, per_perturbation
from jaxgen.train.sharding import make_mesh, put_batch
from jaxgen.train.state import Batch, Program, TrainState, compile_train_step, init_state

# What peft was told to adapt; `output.dense` ends both the attention and the feed-forward block.
TARGETS = ("attention.self.key", "attention.self.value", "intermediate.dense", "output.dense")
FEEDFORWARD = ("intermediate.dense", "output.dense")
# The Trainer's defaults: Adam without decay, gradients clipped at norm 1.
OPTIMIZER = OptimizerConfig(clip_norm=1.0)


def make(config: ConfigDict) -> Method:
    """The method of `config.perturbation.ia3`.

    Raises:
      InputError: settings or a model that cannot be used, before any method runs.
    """
    options: Any = config.perturbation.ia3
    run = ConfigDict(config.to_dict())
    run.model.name, run.init_from = options.model, options.init_from
    run.model.adapter, run.model.adapter_targets, run.model.adapter_feedforward = "ia3", TARGETS, FEEDFORWARD
    spec = model_spec(run)
    if not spec.family.own_head or spec.family.inputs != "tokens":
        raise InputError(f"perturbation.ia3.model={options.model}: it has no classification head of its own; take nt_v2 or dnabert")
    return _Regression(run, spec)


def masked_squares(predictions: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Objective: squared errors over the entries of `target` (rows, genes) that are finite, and how many they are."""
    known = jnp.isfinite(batch["target"]) & (batch["weight"][:, None] > 0)
    errors = jnp.where(known, predictions.astype(jnp.float32) - jnp.where(known, batch["target"], 0), 0)
    return jnp.sum(jnp.square(errors)), jnp.sum(known).astype(jnp.float32), {}


@dataclasses.dataclass(frozen=True)
class _Rows:
    """All perturbations as tokens: ids (P, longest), tokens per row, and the padded lengths that batches may have."""

    ids: np.ndarray
    lengths: np.ndarray
    buckets: tuple[int, ...]
    targets: np.ndarray

    def batch(self, rows: np.ndarray, size: int) -> dict[str, np.ndarray]:
        """Rows, filled up to `size` with copies of weight 0, as long as the bucket of the longest."""
        filled = np.resize(rows, size)
        width = self.buckets[int(bucket_of(self.lengths[filled], self.buckets).max())]
        mask = np.arange(width) < self.lengths[filled, None]
        weight = (np.arange(size) < len(rows)).astype(np.float32)
        return {"tokens": self.ids[filled, :width], "mask": mask, "target": self.targets[filled], "weight": weight}


class _Regression:
    """`Method`: every epoch is judged by the mean Pearson correlation per perturbation, and the best one predicts.

    By default a validation part of the training rows judges. `faithful` trains on all training rows and judges on the test fold, as the
    published script does. Targets that are missing are left out of the loss in both.
    """

    def __init__(self, config: ConfigDict, spec: ModelSpec):
        self.config, self.spec, self.options = config, spec, config.perturbation.ia3

    def __call__(self, data: PerturbationData, folds: Sequence[Fold], *, seed: int, faithful: bool) -> Iterator[FoldResult]:
        size = int(self.options.batch_size)
        rows, program, start = self._prepare(data, seed)
        steps: dict[int, Any] = {}
        predict = jax.jit(
            lambda state, batch: program.apply(state.params, state.frozen, state.model_state, batch, train=False, key=None)[0]
        )

        def step(state: TrainState, batch: dict[str, np.ndarray]) -> TrainState:
            width, batch_ = batch["tokens"].shape[1], put_batch(program.mesh, batch)
            if width not in steps:
                steps[width] = compile_train_step(program, state, batch_)
            return steps[width](state, batch_)[0]

        def predictions(state: TrainState, chosen: np.ndarray) -> np.ndarray:
            """(len(chosen), G); sorted by length, so that a batch holds little padding."""
            found = np.empty((len(chosen), data.targets.shape[1]), np.float32)
            order = np.argsort(rows.lengths[chosen], kind="stable")
            for first in range(0, len(chosen), size):
                part = order[first : first + size]
                with jax.set_mesh(program.mesh):
                    out = predict(state, put_batch(program.mesh, rows.batch(chosen[part], size)))
                found[part] = np.asarray(out)[: len(part)]
            return found

        for fold in folds:
            train, judge = (training_rows(fold), fold.test) if faithful else (fold.train, fold.valid)
            state, best, best_score, best_epoch = jax.tree.map(jnp.copy, start), None, -math.inf, 0
            random = np.random.default_rng([seed, fold.index])
            for epoch in range(1, self.options.epochs + 1):
                order = random.permutation(train)
                for first in range(0, len(order), size):
                    state = step(state, rows.batch(order[first : first + size], size))
                if int(state.nan_steps):
                    raise InputError(f"nt_ia3: loss or gradient not finite in fold {fold.index + 1}; lower perturbation.ia3.learning_rate")
                judged = per_perturbation(data.targets[judge], predictions(state, judge))["centered_pearson"]
                score = float(mean_of_finite(judged))
                if best is None or score > best_score:  # the step donates its state, so the best needs arrays of its own
                    best, best_score, best_epoch = jax.tree.map(jnp.copy, state.params), score, epoch
            state = dataclasses.replace(state, params=best)
            info = {"epochs": int(self.options.epochs), "best_epoch": best_epoch, "validation_pearson": best_score}
            yield FoldResult(fold, predictions(state, fold.test), info=info)

    def _prepare(self, data: PerturbationData, seed: int) -> tuple[_Rows, Program, TrainState]:
        """Tokens of all rows, and the model before training, the same for every fold."""
        assert data.sequences is not None
        config, genes, sequences = self.config, data.targets.shape[1], Sequences.from_list(data.sequences)
        tokenizer = choose_tokenizer(config, self.spec, sequences)
        ids, lengths = tokenizer.encode_batch([sequence.upper() for sequence in data.sequences], padding_side="right")
        buckets = bucket_lengths(lengths, self.options.buckets)
        ids = np.pad(ids, ((0, 0), (0, buckets[-1] - ids.shape[1])), constant_values=tokenizer.pad_id)
        rows = _Rows(ids, lengths, buckets, data.targets)
        spec = sized_for(config, self.spec, buckets[-1], genes)
        tuned = tuning(config, spec.family, spec.config)

        def build(key: jax.Array) -> nnx.Module:
            backbone = spec.family.build(spec.config, nnx.Rngs(key))
            return DirectPredictor(tuned.adapt(backbone, nnx.Rngs(jax.random.fold_in(key, 1))))

        n_devices = math.gcd(self.options.batch_size, len(jax.local_devices()))
        mesh = make_mesh({"data": n_devices, "fsdp": 1, "tensor": 1, "sequence": 1}, jax.local_devices()[:n_devices])
        graphdef, transform, state = init_state(
            build, tuned.freeze, lambda params: make_optimizer(OPTIMIZER, params, self.options.learning_rate), mesh, seed, False
        )
        if spec.arrays is not None:
            state = with_pretrained(state, spec.arrays)
        n_trained, n_frozen = (sum(x.size for x in named_arrays(group).values()) for group in (state.params, state.frozen))
        start = "pretrained" if spec.arrays is not None else "RANDOM weights (perturbation.ia3.init_from is empty)"
        say(f"nt_ia3: {config.model.name}, {start}, {n_trained:,} trained and {n_frozen:,} frozen parameters, batches of {buckets} tokens")
        return rows, Program(graphdef, masked_squares, transform, mesh), state
