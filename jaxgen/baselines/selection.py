"""Early stopping inside a compiled loop: the validation loss, the best weights and when to stop, as arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Selection(NamedTuple):
    """What one fold has reached: scalars, and the parameters of the best validation."""

    loss: jax.Array
    epoch: jax.Array
    without_improvement: jax.Array
    params: Any

    def update(self, loss: jax.Array, epoch: jax.Array, params: Any) -> "Selection":
        """Takes in one validation; NaN and ties do not improve."""
        improved = loss < self.loss
        return Selection(
            jnp.where(improved, loss, self.loss),
            jnp.where(improved, epoch, self.epoch),
            jnp.where(improved, 0, self.without_improvement + 1),
            jax.tree.map(lambda new, old: jnp.where(improved, new, old), params, self.params),
        )


def start(params: Any) -> Selection:
    """Before the first validation."""
    return Selection(jnp.asarray(jnp.inf), jnp.asarray(0), jnp.asarray(0), params)


def keep_stopped(running: jax.Array, new: Any, old: Any) -> Any:
    """`new` for the folds that still run, `old` for those that stopped; leaves have a leading fold axis, as `running` (folds,)."""
    return jax.tree.map(lambda n, o: jnp.where(running.reshape(-1, *(1,) * (n.ndim - 1)), n, o), new, old)


def train_folds(one_epoch: Callable[[Any, jax.Array], Any], folds: Any, epochs: int, patience: int) -> tuple[Any, jax.Array]:
    """Trains all folds until each has gone `patience` validations without improvement, at most `epochs`.

    Args:
      one_epoch: (folds, epoch) -> folds after it, stopped ones too, whose result is dropped.
      folds: leaves with a leading fold axis; `folds.best` is their `Selection`.

    Returns:
      (folds, int (folds,) epochs that each was trained).
    """

    def running(folds: Any) -> jax.Array:
        return folds.best.without_improvement < patience

    def body(carry: tuple[jax.Array, Any, jax.Array]) -> tuple[jax.Array, Any, jax.Array]:
        epoch, folds, epochs_run = carry
        active = running(folds)
        return epoch + 1, keep_stopped(active, one_epoch(folds, epoch), folds), epochs_run + active

    def going_on(carry: tuple[jax.Array, Any, jax.Array]) -> jax.Array:
        return (carry[0] < epochs) & running(carry[1]).any()

    start = (jnp.asarray(0), folds, jnp.zeros_like(folds.best.without_improvement))
    _, folds, epochs_run = jax.lax.while_loop(going_on, body, start)
    return folds, epochs_run
