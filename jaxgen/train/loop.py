"""The training loop: model-blind, data-blind, resumable at any moment.

A run is a pure function of its config: state and the position in the data are saved together, metrics of a resumed run are cut back to
the checkpoint, and randomness depends on (seed, step) alone. So a killed run that is started again ends with the same bytes.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from jaxgen.errors import InputError
from jaxgen.layers.variables import named_arrays
from jaxgen.train.checkpoint import Checkpoints
from jaxgen.train.early_stopping import Selection
from jaxgen.train.evaluate import Evaluator
from jaxgen.train.logging import RunLog, environment
from jaxgen.train.memory import memory_report
from jaxgen.train.progress import Progress
from jaxgen.train.sharding import put_batch
from jaxgen.train.state import Program, TrainState, compile_train_step
from jaxgen.train.termination import Termination


class Stream(Protocol):
    """An endless iterator over this process's rows of the global batches, whose state is the global position alone."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]: ...

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """When the loop does what, all in optimiser steps."""

    steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    batch_size: int
    nan_policy: str = "stop"
    select: str = "loss"
    larger_is_better: bool = False
    patience: int = 0
    learning_rate: Callable[[int], Any] = lambda step: math.nan
    flops_per_step: float | None = None
    peak_flops: float | None = None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a finished run knows. `interrupted` when SIGTERM ended it early (everything is saved)."""

    state: TrainState
    best_step: int
    steps: int
    interrupted: bool
    rates: dict[str, float]
    wall_seconds: float


def params_digest(state: TrainState) -> str:
    """SHA-256 over names and bytes of the parameters and model state: equal exactly when they are."""
    digest = hashlib.sha256()
    for group in (state.params, state.frozen, state.model_state):
        for name, array in sorted(named_arrays(group).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(to_host(array)).tobytes())
    return digest.hexdigest()


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array on this host, gathered from other processes where it must be."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _on_device(stream: Iterable[dict[str, np.ndarray]], program: Program, ahead: int = 1) -> Iterator[dict[str, jax.Array]]:
    """Batches on the mesh, `ahead` of the step that uses them, so that the transfer overlaps the compute."""
    waiting = []
    for batch in stream:
        waiting.append(put_batch(program.mesh, batch))
        if len(waiting) > ahead:
            yield waiting.pop(0)
    yield from waiting


def fit(
    program: Program,
    state: TrainState,
    stream: Stream,
    plan: Plan,
    workdir: str,
    log: RunLog,
    evaluator: Evaluator,
    *,
    say: Callable[[str], None],
    termination: Termination,
    keep: int = 2,
) -> tuple[Fitted, Checkpoints]:
    """Train to `plan.steps`, from the newest checkpoint of `workdir` if there is one.

    Args:
      evaluator: metrics of the validation split for a state.
      say: prints a line for people.
      termination: asks to save and end after a step.

    Raises:
      InputError: non-finite values under the policy "stop"; a checkpoint of another architecture; a full disk.
    """
    if plan.nan_policy not in ("stop", "skip"):
        raise InputError(f"train.nan_policy: {plan.nan_policy!r} is neither 'stop' nor 'skip'")
    began = time.time()
    checkpoints = Checkpoints(workdir, keep=keep)
    selection = Selection(plan.select, plan.larger_is_better, plan.patience)
    stopped_early, before = False, 0.0
    resumed = checkpoints.latest_step()
    if resumed is not None:
        run = checkpoints.restore_run(resumed)
        state = checkpoints.restore_state(resumed, state)
        stream.set_state(run["data"])
        selection = Selection.from_dict(run["selection"])
        stopped_early, before = run["stopped_early"], run["wall_seconds"]
        say(f"resumed from step {resumed}")
    log.truncate_after(-1 if resumed is None else resumed)
    start = int(state.step)

    def save(step: int) -> None:
        run = {
            "step": step,
            "data": _position(stream, step),
            "selection": selection.to_dict(),
            "stopped_early": stopped_early,
            "wall_seconds": before + time.time() - began,
        }
        log.flush()
        checkpoints.save(state, run, best_step=-1 if selection.best_step is None else selection.best_step)

    progress = Progress(
        plan.steps,
        start=start,
        is_main_process=jax.process_index() == 0,
        flops_per_step=plan.flops_per_step,
        peak_flops=plan.peak_flops,
    )
    step, interrupted = start, False
    pending: tuple[int, Mapping[str, jax.Array], int] | None = None

    def settle() -> None:
        """Read the metrics of the step before: by now they are there, so the device never waits for the host."""
        nonlocal pending
        if pending is None:
            return
        at, metrics, tokens = pending
        pending = None
        values = {name: float(value) for name, value in metrics.items()}
        if plan.nan_policy == "stop" and not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            log.log(at, "train", values)
            raise InputError(
                f"step {at}: loss {values['loss']:g}, gradient norm {values['grad_norm']:g}: not finite; parameters were left as they "
                "were. Lower train.learning_rate, use precision=float32, or set train.nan_policy=skip to skip such updates and count them"
            )
        progress.update(at, examples=plan.batch_size, tokens=tokens, loss=values["loss"])
        if at % plan.log_every == 0 or at in (1, plan.steps):
            log.log(at, "train", values | {"learning_rate": float(plan.learning_rate(at - 1))})

    with termination.saving(), jax.set_mesh(program.mesh):
        compiled: dict[Any, Any] = {}  # by the shapes of a batch: one, or one per length bucket
        for batch in _on_device(stream, program) if start < plan.steps and not stopped_early else ():
            shapes = tuple(x.shape for x in batch.values())
            if shapes not in compiled:
                settle()
                with progress.paused():
                    since = time.time()
                    compiled[shapes] = compile_train_step(program, state, batch)
                seconds = time.time() - since
                say(f"compiled the training step for {_tokens(batch):,} tokens in {seconds:.1f} s; {memory_report(compiled[shapes])}")
            state, metrics = compiled[shapes](state, batch)
            step += 1
            settle()
            pending = (step, metrics, _tokens(batch))
            last = step >= plan.steps
            if step % plan.eval_every == 0 or last:
                settle()
                with progress.paused():
                    values = evaluator.metrics(state)
                log.log(step, "valid", values)
                improved, stopped_early = selection.update(values[plan.select], step)
                shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
                progress.message(f"step {step}  valid: {shown}{'  (best)' if improved else ''}")
                if improved or last or stopped_early:
                    save(step)
            if step % plan.checkpoint_every == 0:
                settle()
                save(step)
            interrupted = not (last or stopped_early) and termination.agreed(step)
            if last or stopped_early or interrupted:
                settle()
                break
        if interrupted:
            save(step)
            progress.message(f"SIGTERM: everything is saved at step {step}; the same command continues from here")
        if stopped_early:
            progress.message(f"stopped early: {plan.select} has not improved for {plan.patience} evaluations")
        progress.close()
        checkpoints.wait()
    best = selection.best_step if selection.best_step is not None else step
    return Fitted(state, best, step, interrupted, progress.rates(), before + time.time() - began), checkpoints


def _tokens(batch: Mapping[str, jax.Array]) -> int:
    """Token positions of a batch; 0 where it has none."""
    return int(np.prod(batch["tokens"].shape[:2])) if "tokens" in batch else 0


def _position(stream: Stream, step: int) -> dict[str, Any]:
    """The stream's state as of `step`: batches that were read ahead are not consumed."""
    return stream.get_state() | {"step": step}


def run_result(fitted: Fitted, metrics: Mapping[str, Mapping[str, float]], seed: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What `result.json` of a finished run says; every process takes part (parameters are gathered)."""
    return {
        "metrics": metrics,
        "best_step": fitted.best_step,
        "steps": fitted.steps,
        "seed": seed,
        "examples_per_second": fitted.rates["examples_per_second"],
        "tokens_per_second": fitted.rates["tokens_per_second"],
        "nan_steps": int(fitted.state.nan_steps),
        "params_digest": params_digest(fitted.state),
        "wall_seconds": fitted.wall_seconds,
        **extra,
        **environment(),
    }
