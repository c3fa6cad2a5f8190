"""Runs that differ in their seed alone, trained together by one program: the step of state.py under vmap over the seeds.

A small model leaves an accelerator idle; a few of them side by side do not, and there is one compilation instead of many. With more than
one device the seeds are divided over them. Every seed has its own data order, selection and early stopping, as in a run of its own; the
numbers agree with those of single runs to rounding, not bit for bit.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import InputError
from jaxgen.train.checkpoint import Checkpoints
from jaxgen.train.early_stopping import Selection
from jaxgen.train.evaluate import PredictionEvaluator, collect
from jaxgen.train.logging import RunLog
from jaxgen.train.loop import Fitted, Plan, Stream
from jaxgen.train.memory import memory_report
from jaxgen.train.progress import Progress
from jaxgen.train.state import Program, TrainState, make_train_step
from jaxgen.train.termination import Termination

SEEDS = PartitionSpec("seeds")
Batch = dict[str, np.ndarray]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedState:
    """All seeds on a leading axis: where they are, and each one's best step so far."""

    now: TrainState
    best_params: nnx.State
    best_ema: nnx.State | None
    best_model_state: nnx.State

    def keep(self, improved: jax.Array) -> "PackedState":
        """With the present weights as the best ones of the seeds that `improved`, bool (seeds,)."""

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        new = (self.now.params, self.now.ema, self.now.model_state)
        chosen = jax.tree.map(choose, new, (self.best_params, self.best_ema, self.best_model_state))
        return PackedState(self.now, *chosen)

    def best(self, seed: int) -> TrainState:
        """The state of one seed with its best weights."""
        groups = {"params": self.best_params, "ema": self.best_ema, "model_state": self.best_model_state}
        return jax.tree.map(lambda x: x[seed], dataclasses.replace(self.now, **groups))


@dataclasses.dataclass(frozen=True)
class Member:
    """One seed: its training batches, and what it leaves behind."""

    name: str
    state: TrainState
    stream: Stream
    evaluators: Mapping[str, PredictionEvaluator]
    log: RunLog


def _mesh(count: int) -> Mesh:
    """As many devices as divide the seeds evenly."""
    devices = jax.local_devices()
    ways = max(n for n in range(1, len(devices) + 1) if count % n == 0)
    return Mesh(np.array(devices[:ways]), ("seeds",))


def _over_seeds(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Callable[..., Any]:
    """The function for every seed, each device doing its own."""
    mapped = jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=SEEDS, out_specs=SEEDS, check_vma=False)
    return jax.jit(mapped, **options)


def _stacked(batches: Sequence[Batch], sharding: NamedSharding) -> dict[str, jax.Array]:
    return {name: jax.device_put(np.stack([batch[name] for batch in batches]), sharding) for name in batches[0]}


class PackedEvaluator:
    """Metrics of one split for every seed."""

    def __init__(self, evaluators: Sequence[PredictionEvaluator], mesh: Mesh):
        self.evaluators, self._sharding = evaluators, NamedSharding(mesh, SEEDS)
        self._predict = _over_seeds(evaluators[0].predict, mesh)

    def metrics(self, params: nnx.State, frozen: nnx.State, model_state: nnx.State) -> list[dict[str, float]]:
        """Also leaves each seed's predictions in its evaluator's `last`."""
        parts: list[list[tuple[Any, ...]]] = [[] for _ in self.evaluators]
        for batches in zip(*(evaluator.batches() for evaluator in self.evaluators), strict=True):
            output = jax.device_get(self._predict(params, frozen, model_state, _stacked(batches, self._sharding)))
            for seed, part in enumerate(parts):
                part.append(tuple(None if x is None else x[seed] for x in output))
        for evaluator, part in zip(self.evaluators, parts):
            evaluator.last = collect(part)
        return [evaluator.metrics_of(*evaluator.last) for evaluator in self.evaluators if evaluator.last is not None]


def _batches(members: Sequence[Member], sharding: NamedSharding) -> Iterator[dict[str, jax.Array]]:
    """Batches of all seeds on the devices, one ahead of the step that uses them."""
    waiting = None
    for batches in zip(*(member.stream for member in members)):
        ahead = _stacked(batches, sharding)
        if waiting is not None:
            yield waiting
        waiting = ahead


def fit_packed(
    program: Program, members: Sequence[Member], plan: Plan, folder: str, *, say: Callable[[str], None], termination: Termination
) -> list[tuple[Fitted, dict[str, dict[str, float]]]]:
    """Train all members to `plan.steps`, from the newest checkpoint in `folder` if there is one.

    Returns:
      for every member, what a run of its own would give with `state` at its best step (`wall_seconds` is its share), and the metrics of
      that step on every split; none when SIGTERM ended it early (everything is saved).

    Raises:
      InputError: non-finite values under the policy "stop"; a full disk.
    """
    began, count = time.time(), len(members)
    mesh = _mesh(count)
    sharding = NamedSharding(mesh, SEEDS)
    now = jax.tree.map(lambda *x: jax.device_put(jnp.stack(x), sharding), *(member.state for member in members))
    packed = PackedState(now, *jax.tree.map(jnp.copy, (now.params, now.ema, now.model_state)))
    checkpoints = Checkpoints(folder, keep=1)
    selections = [Selection(plan.select, plan.larger_is_better, plan.patience) for _ in members]
    stops, before = [0] * count, 0.0  # the step at which a seed stopped early
    resumed = checkpoints.latest_step()
    if resumed is not None:
        run = checkpoints.restore_run(resumed)
        packed = checkpoints.restore_state(resumed, packed)
        selections = [Selection.from_dict(selection) for selection in run["selections"]]
        stops, before = run["stops"], run["wall_seconds"]
        say(f"resumed from step {resumed}")
    step = start = resumed or 0
    for member in members:
        member.log.truncate_after(-1 if resumed is None else resumed)
        member.stream.set_state({"step": start})
    valid = PackedEvaluator([member.evaluators["valid"] for member in members], mesh)
    keep = jax.jit(PackedState.keep, donate_argnums=0)

    def save() -> None:
        for member in members:
            member.log.flush()
        run = {"step": step, "selections": [s.to_dict() for s in selections], "stops": stops}
        checkpoints.save(packed, run | {"wall_seconds": before + time.time() - began}, best_step=-1)

    progress = Progress(
        plan.steps, start=start, flops_per_step=plan.flops_per_step and plan.flops_per_step * count, peak_flops=plan.peak_flops
    )
    pending: tuple[int, Mapping[str, jax.Array]] | None = None
    tokens = 0

    def settle() -> None:
        """Read the metrics of the step before, which are there by now."""
        nonlocal pending
        if pending is None:
            return
        at, values = pending[0], {name: np.asarray(x) for name, x in pending[1].items()}
        pending = None
        for i, member in enumerate(members):
            own = {name: float(x[i]) for name, x in values.items()}
            if plan.nan_policy == "stop" and not stops[i] and not (math.isfinite(own["loss"]) and math.isfinite(own["grad_norm"])):
                raise InputError(f"{member.name}, step {at}: loss {own['loss']:g}, gradient norm {own['grad_norm']:g}: not finite")
            if not stops[i] and (at % plan.log_every == 0 or at in (1, plan.steps)):
                member.log.log(at, "train", own | {"learning_rate": float(plan.learning_rate(at - 1))})
        progress.update(at, examples=plan.batch_size * count, tokens=tokens, loss=float(values["loss"].mean()))

    def evaluate() -> bool:
        """Whether any seed improved."""
        nonlocal packed
        improved = np.zeros(count, bool)
        with progress.paused():
            results = valid.metrics(packed.now.inference_params(), packed.now.frozen, packed.now.model_state)
        for i, (member, values) in enumerate(zip(members, results)):
            if stops[i]:
                continue
            member.log.log(step, "valid", values)
            improved[i], stop = selections[i].update(values[plan.select], step)
            stops[i] = step if stop else 0
        packed = keep(packed, jax.device_put(improved, sharding))
        shown = "  ".join(f"{values[plan.select]:.4f}{'*' if best else ''}" for values, best in zip(results, improved))
        progress.message(f"step {step}  valid {plan.select} of each seed (* best): {shown}")
        return bool(improved.any())

    interrupted = False
    with termination.saving():
        train_step = None
        for batch in _batches(members, sharding) if start < plan.steps and not all(stops) else ():
            if train_step is None:
                since = time.time()
                train_step = _over_seeds(make_train_step(program), mesh, donate_argnums=0).lower(packed.now, batch).compile()
                tokens = int(np.prod(batch["tokens"].shape[:3])) if "tokens" in batch else 0
                took = time.time() - since
                say(f"compiled the training step of {count} seeds on {mesh.size} devices in {took:.1f} s; {memory_report(train_step)}")
            state, metrics = train_step(packed.now, batch)
            packed = dataclasses.replace(packed, now=state)
            step += 1
            settle()
            pending = step, metrics
            last = step >= plan.steps
            if step % plan.eval_every == 0 or last:
                settle()
                if evaluate() or last or all(stops):
                    save()
            if step % plan.checkpoint_every == 0:
                settle()
                save()
            done = last or all(stops)
            interrupted = not done and termination.requested
            if done or interrupted:
                settle()
                break
        progress.close()
        if interrupted:
            save()
            say(f"SIGTERM: everything is saved at step {step}; the same command continues from here")
        checkpoints.close()
    if interrupted:
        return []
    termination.check()
    results = {}
    for split in members[0].evaluators:
        evaluator = PackedEvaluator([member.evaluators[split] for member in members], mesh)
        params = packed.best_params if packed.best_ema is None else packed.best_ema
        results[split] = evaluator.metrics(params, packed.now.frozen, packed.best_model_state)
    # What a seed reports is its share.
    rates, seconds = {name: rate / count for name, rate in progress.rates().items()}, (before + time.time() - began) / count
    out = []
    for i, member in enumerate(members):
        member.log.flush()
        best = selections[i].best_step
        fitted = Fitted(packed.best(i), step if best is None else best, stops[i] or step, False, rates, seconds)
        out.append((fitted, {split: values[i] for split, values in results.items()}))
    return out
