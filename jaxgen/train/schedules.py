"""Learning-rate schedules: pure functions of the optimiser step, usable inside `jax.jit`.

The value for step t is the rate used by update number t (counted from 0). Fields of a schedule config:

| field | meaning | default |
|---|---|---|
| `name` | `constant`, `linear`, `cosine` or `cosine_timm` | `constant` |
| `warmup_steps` | length of the linear warm-up in steps; may be fractional | 0 |
| `warmup_fraction` | the same as a share of the total; set one of the two | 0 |
| `warmup_init` | rate at step 0 of the warm-up | 0 |
| `min_lr` | rate at the end of the decay | 0 |
| `min_lr_fraction` | the same as a share of the learning rate; set one of the two | 0 |
| `total_steps` | steps after which the decay ends; 0 means the length of the run | 0 |
| `warmup_prefix` | `cosine_timm` only: the cosine starts after the warm-up (true) or has run underneath it (false) | false |

`linear` is the decay of Hugging Face's Trainer; `cosine` counts its warm-up inside the total as optax does; `cosine_timm`
is timm's scheduler, which the Caduceus and HyenaDNA recipes use (fine-tuning without, pre-training with `warmup_prefix`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import InputError, nearest

Schedule = Callable[[Any], jax.Array]

_DEFAULTS = {
    "name": "constant",
    "warmup_steps": 0.0,
    "warmup_fraction": 0.0,
    "warmup_init": 0.0,
    "min_lr": 0.0,
    "min_lr_fraction": 0.0,
    "total_steps": 0,
    "warmup_prefix": False,
}


def _warm_up(step: Any, init: float, peak: float, length: float) -> jax.Array:
    """The warm-up line at `step`; only meaningful below `length`."""
    return init + step * ((peak - init) / max(length, 1e-30))


def _cosine(step: Any, lr: float, lr_min: float, length: float) -> jax.Array:
    """Half a cosine from `lr` at 0 to `lr_min` at `length`, then flat."""
    left = jnp.clip((length - step) / max(length, 1e-30), 0.0, 1.0)
    # (1 + cos(pi (1 - left))) / 2 written without its cancellation near the end, which float32 would show.
    return lr_min + (lr - lr_min) * jnp.sin(0.5 * jnp.pi * left) ** 2


def cosine_timm(
    lr: float, t_initial: float, warmup_t: float = 0.0, warmup_lr_init: float = 0.0, lr_min: float = 0.0, warmup_prefix: bool = False
) -> Schedule:
    """timm's cosine: `warmup_t` (may be fractional) steps of linear warm-up, then a cosine of length `t_initial`.

    Without `warmup_prefix` the cosine is evaluated at t itself, so it has already fallen a little when the warm-up ends.
    """

    def schedule(step: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        decayed = _cosine(t - warmup_t if warmup_prefix else t, lr, lr_min, t_initial)
        return jnp.where(t < warmup_t, _warm_up(t, warmup_lr_init, lr, warmup_t), decayed)

    return schedule


def cosine(lr: float, total: float, warmup: float = 0.0, warmup_init: float = 0.0, lr_min: float = 0.0) -> Schedule:
    """Linear warm-up, then a cosine that reaches `lr_min` at `total` (optax's `warmup_cosine_decay_schedule`)."""
    return cosine_timm(lr, total - warmup, warmup, warmup_init, lr_min, warmup_prefix=True)


def linear(lr: float, total: float, warmup: float = 0.0, warmup_init: float = 0.0, lr_min: float = 0.0) -> Schedule:
    """Linear warm-up, then a straight line that reaches `lr_min` at `total` (Hugging Face's linear decay)."""

    def schedule(step: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        left = jnp.clip((total - t) / max(total - warmup, 1e-30), 0.0, 1.0)
        return jnp.where(t < warmup, _warm_up(t, warmup_init, lr, warmup), lr_min + (lr - lr_min) * left)

    return schedule


def constant(lr: float, warmup: float = 0.0, warmup_init: float = 0.0) -> Schedule:
    """Linear warm-up, then `lr` for ever."""

    def schedule(step: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        return jnp.where(t < warmup, _warm_up(t, warmup_init, lr, warmup), jnp.float32(lr))

    return schedule


_SCHEDULES: dict[str, Callable[..., Schedule]] = {"constant": constant, "linear": linear, "cosine": cosine, "cosine_timm": cosine_timm}


def make(name: str, **fields: Any) -> Schedule:
    """The schedule called `name`, with that function's own arguments.

    Raises:
      InputError: no schedule has that name.
    """
    if name not in _SCHEDULES:
        raise InputError(f"schedule.name={name!r} is not a schedule{nearest(name, _SCHEDULES)}")
    return _SCHEDULES[name](**fields)


def from_config(config: Mapping[str, Any], learning_rate: float, total_steps: int) -> Schedule:
    """The schedule that a config describes (fields: see the module), for a run of `total_steps` optimiser steps.

    Raises:
      InputError: an unknown name or field, a field given in two ways, or a warm-up as long as the whole run.
    """
    for key in config:
        if key not in _DEFAULTS:
            raise InputError(f"schedule.{key} is not a field of a schedule{nearest(key, _DEFAULTS)}")
    fields = {**_DEFAULTS, **config}
    for absolute, share in (("warmup_steps", "warmup_fraction"), ("min_lr", "min_lr_fraction")):
        if fields[absolute] and fields[share]:
            raise InputError(f"schedule.{absolute} and schedule.{share} are both set; keep one")
    name, total = fields["name"], float(fields["total_steps"] or total_steps)
    warmup = fields["warmup_steps"] or fields["warmup_fraction"] * total
    lr_min = fields["min_lr"] or fields["min_lr_fraction"] * learning_rate
    if name != "constant" and warmup >= total:
        raise InputError(f"the warm-up of {warmup:g} steps leaves nothing of the schedule's {total:g} steps; lower schedule.warmup_steps")
    if fields["warmup_prefix"] and name != "cosine_timm":
        raise InputError(f"schedule.warmup_prefix belongs to cosine_timm, not to {name!r}; remove it")
    if name == "constant":
        if lr_min:
            raise InputError("schedule.min_lr has no meaning for a constant schedule; remove it or set schedule.name=cosine")
        return constant(learning_rate, warmup, fields["warmup_init"])
    if name == "cosine_timm":
        prefix = bool(fields["warmup_prefix"])
        return cosine_timm(learning_rate, total - warmup * prefix, warmup, fields["warmup_init"], lr_min, prefix)
    return make(name, lr=learning_rate, total=total, warmup=warmup, warmup_init=fields["warmup_init"], lr_min=lr_min)
