"""Early stopping inside a compiled loop: the validation loss, the best weights and when to stop, as arrays."""

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
