"""Whole-split evaluation: predictions gathered in order, or exact masked sums; every example counts once."""

import collections
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen.train import metrics
from jaxgen.train.sharding import put_batch
from jaxgen.train.state import Program, TrainState

Batches = Callable[[], Iterable[dict[str, np.ndarray]]]


class Evaluator(Protocol):
    """Metrics of one split for a state; `names` are their names."""

    names: tuple[str, ...]

    def metrics(self, state: TrainState) -> dict[str, float]: ...


class _Compiled:
    """A function of (state parts, batch), compiled once per batch shape with replicated results."""

    def __init__(self, program: Program, function: Callable[..., Any]):
        self.program = program
        self._run = jax.jit(function, out_shardings=NamedSharding(program.mesh, PartitionSpec()))

    def __call__(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> Any:
        with jax.set_mesh(self.program.mesh):
            return self._run(state.inference_params(), state.frozen, state.model_state, put_batch(self.program.mesh, batch))


class PredictionEvaluator:
    """Predictions of a whole split, and the named metrics on them."""

    def __init__(self, program: Program, batches: Batches, names: tuple[str, ...]):
        self.batches, self.names = batches, ("loss", *names)
        self.last: tuple[np.ndarray, np.ndarray, float] | None = None  # what `metrics` was computed from

        def predict(params: Any, frozen: Any, model_state: Any, batch: Mapping[str, jax.Array]) -> Any:
            predictions, _ = program.apply(params, frozen, model_state, batch, train=False, key=None)
            total, weight, _ = program.objective(predictions, batch)
            return predictions.astype(jnp.float32), batch["target"], batch["weight"], total, weight, batch.get("index")

        self.predict = predict  # pure, (params, frozen, model_state, batch) -> what `collect` takes
        self._compiled = _Compiled(program, predict)

    def predictions(self, state: TrainState) -> tuple[np.ndarray, np.ndarray, float]:
        """(predictions, targets) of the real examples in order, and the mean loss."""
        return collect(jax.device_get(self._compiled(state, batch)) for batch in self.batches())

    def metrics(self, state: TrainState) -> dict[str, float]:
        self.last = self.predictions(state)
        return self.metrics_of(*self.last)

    def metrics_of(self, predictions: np.ndarray, targets: np.ndarray, loss: float) -> dict[str, float]:
        """The named metrics of what `predictions` returns."""
        return {"loss": loss, **metrics.evaluate(self.names[1:], predictions, targets)}


def collect(parts: Iterable[Sequence[Any]]) -> tuple[np.ndarray, np.ndarray, float]:
    """Batches of (predictions, targets, weights, loss sum, weight sum, index or None) -> the real examples in order, and the mean loss."""
    outputs, targets, order, loss, weight = [], [], [], 0.0, 0.0
    for p, t, w, total, count, index in parts:
        keep = w > 0
        outputs.append(p[keep])
        targets.append(t[keep])
        if index is not None:  # batches by length: put the examples back into their order
            order.append(index[keep])
        loss, weight = loss + float(total), weight + float(count)
    back = np.argsort(np.concatenate(order)) if order else slice(None)
    return np.concatenate(outputs)[back], np.concatenate(targets)[back], loss / max(weight, 1.0)


class SumEvaluator:
    """Per-token loss, perplexity and accuracy from exact sums over a split; nothing is gathered."""

    names: tuple[str, ...] = ("loss", "bits_per_token", "perplexity", "accuracy", "tokens")

    def __init__(self, program: Program, batches: Batches):
        self.batches = batches

        def sums(params: Any, frozen: Any, model_state: Any, batch: Mapping[str, jax.Array]) -> Any:
            predictions, _ = program.apply(params, frozen, model_state, batch, train=False, key=None)
            total, weight, others = program.objective(predictions, batch)
            return {"total": total, "weight": weight} | others

        self._sums = _Compiled(program, sums)

    def metrics(self, state: TrainState) -> dict[str, float]:
        sums: dict[str, float] = collections.defaultdict(float)
        for batch in self.batches():
            for name, value in jax.device_get(self._sums(state, batch)).items():
                sums[name] += float(value)
        weight = max(sums["weight"], 1.0)
        loss = sums["total"] / weight
        values = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": sums["correct"] / weight, "tokens": sums["weight"]}
        if "bases" in sums:
            values["loss_per_base"] = sums["base_loss"] / max(sums["bases"], 1.0)
            values["bits_per_base"] = values["loss_per_base"] / math.log(2)
        return values
