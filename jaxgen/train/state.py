"""TrainState, and the one jitted, donated training step.

The model is split once into a graph definition and pure state; nothing of NNX is traversed per step. The mesh enters only through
shardings.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.train.objectives import Objective
from jaxgen.train.optim import ema_update, split_trainable
from jaxgen.train.sharding import state_shardings

Batch = Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run is made of on the device.

    `params` are trained, `frozen` are not and carry no optimiser state; `model_state` holds buffers and running statistics.
    `nan_steps` counts updates that were skipped because loss or gradient was not finite.
    """

    step: jax.Array
    params: nnx.State
    frozen: nnx.State
    model_state: nnx.State
    opt_state: optax.OptState
    ema: nnx.State | None
    rng: jax.Array
    nan_steps: jax.Array

    def inference_params(self) -> nnx.State:
        """What evaluation uses: the moving average when there is one."""
        return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class Program:
    """A model, its loss and its optimiser, as pure functions over a TrainState."""

    graphdef: nnx.GraphDef
    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: Mesh
    accumulate: int = 1
    ema_decay: float = 0.0

    def apply(
        self, params: nnx.State, frozen: nnx.State, model_state: nnx.State, batch: Batch, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, nnx.State]:
        """predictions, and the model state after the call."""
        model = nnx.merge(self.graphdef, params, frozen, model_state, copy=True)
        predictions = model(batch, train=train, key=key)
        return predictions, nnx.state(model, nnx.Not(nnx.Param)) if train else model_state


def split_model(module: nnx.Module, freeze: tuple[str, ...]) -> tuple[nnx.GraphDef, nnx.State, nnx.State, nnx.State]:
    """module -> (graphdef, trainable parameters, frozen parameters, everything else)."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    trainable, frozen = split_trainable(params, freeze)
    return graphdef, trainable, frozen, rest


# The LLVM passes above level 1 do nothing for a program that runs once, but take most of its compilation on CPUs.
_RUN_ONCE = {"xla_backend_optimization_level": 1}


def initialiser(
    build: Callable[[jax.Array], nnx.Module],
    freeze: tuple[str, ...],
    make_optimizer: Callable[[nnx.State], optax.GradientTransformation],
    mesh: Mesh,
    use_ema: bool,
) -> tuple[nnx.GraphDef, optax.GradientTransformation, Callable[[int], TrainState]]:
    """A model, its optimiser, and seed -> their state, born sharded: nothing larger than a shard ever exists on a device.

    Args:
      build: key -> module; runs inside jit, once for all seeds.
      make_optimizer: from the abstract trainable parameters.
    """
    graphdef, abstract, *_ = split_model(nnx.eval_shape(lambda: build(jax.random.key(0))), freeze)
    optimizer = make_optimizer(abstract)

    def make(model_key: jax.Array, run_key: jax.Array) -> TrainState:
        _, params, frozen, rest = split_model(build(model_key), freeze)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            model_state=rest,
            opt_state=optimizer.init(params),
            ema=params if use_ema else None,
            rng=jax.random.key_data(run_key),
            nan_steps=jnp.zeros((), jnp.int32),
        )

    key = jax.random.key(0)
    shardings = state_shardings(mesh, jax.eval_shape(make, key, key))
    options = _RUN_ONCE if mesh.devices.flat[0].platform == "cpu" else None
    program = jax.jit(make, out_shardings=shardings, compiler_options=options)

    def initial(seed: int) -> TrainState:
        with jax.set_mesh(mesh):
            return program(*jax.random.split(jax.random.key(seed)))

    return graphdef, optimizer, initial


def init_state(
    build: Callable[[jax.Array], nnx.Module],
    freeze: tuple[str, ...],
    make_optimizer: Callable[[nnx.State], optax.GradientTransformation],
    mesh: Mesh,
    seed: int,
    use_ema: bool,
) -> tuple[nnx.GraphDef, optax.GradientTransformation, TrainState]:
    """A model, its optimiser and their state under one seed, as `initialiser` makes them."""
    graphdef, optimizer, initial = initialiser(build, freeze, make_optimizer, mesh, use_ema)
    return graphdef, optimizer, initial(seed)


def _micro_batches(batch: Batch, n: int) -> Batch:
    """(rows, ...) -> (n, rows / n, ...), interleaved so that every row stays on its device."""
    return {name: jnp.swapaxes(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 0, 1) for name, x in batch.items()}


def make_train_step(program: Program) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """`(state, batch) -> (state, metrics)`: one update from one global batch, to be jitted with the state donated.

    The gradient is that of (sum of losses) / (sum of weights) over the whole batch, whatever the number of micro-batches and devices. An
    update whose loss or gradient norm is not finite leaves parameters and optimiser as they were and is counted in `nan_steps`.
    """

    def loss_sum(params: nnx.State, frozen: nnx.State, model_state: nnx.State, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        predictions, new_model_state = program.apply(params, frozen, model_state, batch, train=True, key=key)
        total, weight, sums = program.objective(predictions, batch)
        return total, (weight, sums, new_model_state)

    grad_sum = jax.value_and_grad(loss_sum, has_aux=True)

    def gradients(state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, ...]:
        if program.accumulate == 1:
            (total, (weight, sums, model_state)), grads = grad_sum(state.params, state.frozen, state.model_state, batch, key)
            return total, weight, sums, model_state, grads

        def one(carry: Any, item: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
            model_state, grads = carry
            micro, index = item
            (total, (weight, sums, model_state)), g = grad_sum(
                state.params, state.frozen, model_state, micro, jax.random.fold_in(key, index)
            )
            return (model_state, jax.tree.map(jnp.add, grads, g)), (total, weight, sums)

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        items = (_micro_batches(batch, program.accumulate), jnp.arange(program.accumulate))
        (model_state, grads), (totals, weights, sums) = jax.lax.scan(one, (state.model_state, zeros), items)
        return totals.sum(), weights.sum(), jax.tree.map(lambda x: x.sum(0), sums), model_state, grads

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        total, weight, sums, model_state, grads = gradients(state, batch, key)
        denominator = jnp.maximum(weight, 1.0)
        loss = total / denominator
        grads = jax.tree.map(lambda g: g / denominator, grads)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = program.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt_state, model_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, model_state),
            (state.params, state.opt_state, state.model_state),
        )
        ema = None if state.ema is None else ema_update(state.ema, params, program.ema_decay, state.step)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema=ema,
            nan_steps=state.nan_steps + (1 - finite.astype(jnp.int32)),
        )
        metrics = {"loss": loss, "grad_norm": grad_norm, "weight": weight, "nan_steps": new_state.nan_steps}
        if "correct" in sums:
            metrics["accuracy"] = sums["correct"] / denominator
        return new_state, metrics

    return train_step


def compile_train_step(program: Program, state: TrainState, batch: Batch) -> jax.stages.Compiled:
    """The training step for these shapes: donated, and leaving every array of the state on the shards where it was."""
    out_shardings = (jax.tree.map(lambda x: x.sharding, state), NamedSharding(program.mesh, PartitionSpec()))
    with jax.set_mesh(program.mesh):
        return jax.jit(make_train_step(program), donate_argnums=0, out_shardings=out_shardings).lower(state, batch).compile()
