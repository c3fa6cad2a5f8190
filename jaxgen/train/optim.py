"""AdamW with parameter groups, frozen parameters and an optional moving average.

Groups are decided once, from the metadata of each `nnx.Param` (`decay=False`: no weight decay; `lr_scale=x`: learning rate
times x) and from regular expressions over dotted paths such as `blocks.mixer.in_proj.kernel`. A pattern matches anywhere in
the path (`re.search`); anchor it with `^` and `$`.

Frozen parameters are kept out of differentiation and of the optimiser altogether: `split_trainable` cuts the parameters in
two, `jax.grad` is taken with respect to the trainable half, and the optimiser never sees the other one. Nothing is masked,
so there is no gradient and no moment to pay for, and no decay or rounding can move a frozen weight:

    trainable, frozen = split_trainable(params, ["^backbone"])
    grads = jax.grad(lambda t: loss(nnx.merge(graphdef, t, frozen)))(trainable)

The optimiser's state holds trees shaped like the trainable parameters, made of the same `nnx.Param`s with the same metadata
(logical axes included), so shardings of the moments follow from those of the parameters.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxgen.errors import InputError, nearest

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser's fields of a training config."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0  # largest global norm of the gradients; 0 = no clipping
    no_decay: tuple[str, ...] = ()  # patterns of parameters without weight decay, besides those whose metadata says so
    lr_scale: tuple[str, ...] = ()  # "pattern=factor" on the learning rate, such as "^head=10"; the first match counts

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "OptimizerConfig":
        """Picks these fields out of a larger training config; those that it lacks keep their defaults."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls) if field.name in config})


@dataclasses.dataclass(frozen=True)
class Group:
    """How one parameter is trained."""

    weight_decay: float
    lr_scale: float


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def path_string(path: Path) -> str:
    """`blocks.mixer.in_proj.kernel` for a key path of an `nnx.State`: a tuple of names, or JAX's key entries."""
    names = []
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            continue  # the `.value` of an nnx.Variable
        names.append(str(getattr(key, "key", getattr(key, "idx", key))))
    return ".".join(names)


def match(patterns: Iterable[str], path: str) -> bool:
    """Whether any of the patterns is found in the dotted path."""
    return any(_compiled(pattern).search(path) for pattern in patterns)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"pattern {pattern!r} is not a regular expression: {error}; escape special characters with a backslash") from None


def _variables(params: Any) -> Iterator[tuple[str, Any]]:
    """(dotted path, nnx.Variable or bare array) of every parameter, in tree order."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_variable)[0]:
        yield path_string(path), leaf


def _must_match(patterns: Iterable[str], paths: Iterable[str], field: str) -> None:
    for pattern in patterns:
        if not any(match([pattern], path) for path in paths):
            hint = nearest(pattern, paths)
            if len(hint) > 200:  # nothing is near: a few of many names show what paths look like
                hint = f"; paths look like {', '.join(list(paths)[:3])}"
            raise InputError(f"{field}: pattern {pattern!r} matches no parameter{hint}")


def _scale(text: str) -> tuple[str, float]:
    pattern, _, factor = text.rpartition("=")
    try:
        return pattern, float(factor)
    except ValueError:
        raise InputError(f"lr_scale: {text!r} is not of the form PATTERN=FACTOR, such as '^head=10'") from None


def param_groups(params: Any, config: OptimizerConfig) -> dict[str, Group]:
    """The group of every parameter, by dotted path. `params` may be abstract.

    Raises:
      InputError: an `lr_scale` that is not "pattern=factor" or matches nothing. A `no_decay` pattern may match nothing: one
        list serves models with and without biases.
    """
    variables = dict(_variables(params))
    scales = [_scale(text) for text in config.lr_scale]
    _must_match([pattern for pattern, _ in scales], variables, "lr_scale")
    groups = {}
    for path, leaf in variables.items():
        metadata = leaf.get_metadata() if _is_variable(leaf) else {}
        decays = metadata.get("decay", True) and not match(config.no_decay, path)
        scale = next((factor for pattern, factor in scales if match([pattern], path)), 1.0)
        groups[path] = Group(
            weight_decay=config.weight_decay if decays else 0.0,
            lr_scale=float(scale * metadata.get("lr_scale", 1.0)),
        )
    return groups


def split_trainable(params: nnx.State, freeze: Iterable[str]) -> tuple[nnx.State, nnx.State]:
    """Cuts parameters into (trainable, frozen); `nnx.merge(graphdef, trainable, frozen)` or `nnx.merge_state` joins them again.

    Raises:
      InputError: a pattern that matches nothing, which would silently train what it should not, or patterns that match everything.
    """
    freeze = tuple(freeze)
    paths = [path for path, _ in _variables(params)]
    _must_match(freeze, paths, "freeze")
    if paths and all(match(freeze, path) for path in paths):
        raise InputError(f"freeze: {', '.join(freeze)} matches every parameter, so nothing is left to train")
    trainable, frozen = nnx.split_state(params, lambda path, _: not match(freeze, path_string(path)), ...)
    return trainable, frozen


def make_optimizer(config: OptimizerConfig, params: nnx.State, schedule: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """AdamW as `torch.optim.AdamW` computes it: clip, Adam, decoupled decay, then minus the learning rate.

    Args:
      config: betas, decay, clipping and groups.
      params: the trainable parameters (see `split_trainable`), concrete or abstract; only paths and metadata are read.
      schedule: learning rate by update number, or a number.

    Raises:
      InputError: a pattern of the config that cannot be used, see `param_groups`.
    """
    groups = param_groups(params, config)
    b1, b2 = config.betas
    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    steps += [optax.scale_by_adam(b1, b2, config.eps), _decay_and_scale(groups), optax.scale_by_learning_rate(schedule)]
    return _in_float32(optax.chain(*steps))


def _decay_and_scale(groups: Mapping[str, Group]) -> optax.GradientTransformation:
    """updates -> lr_scale * (updates + weight_decay * params), each parameter with the numbers of its group."""

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        def leaf(path: Path, u: jax.Array, p: jax.Array) -> jax.Array:
            group = groups[path_string(path)]
            u = u + group.weight_decay * p.astype(u.dtype) if group.weight_decay else u
            return u if group.lr_scale == 1.0 else group.lr_scale * u

        return jax.tree_util.tree_map_with_path(leaf, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Moments, norms and arithmetic in float32 whatever the dtype of parameters and gradients; updates in the parameters' dtype."""
    cast = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)  # noqa: E731

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        updates, state = inner.update(cast(updates), state, params)
        return jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params), state

    return optax.GradientTransformation(lambda params: inner.init(cast(params)), update)


def ema_update(ema: Any, params: Any, decay: float, step: Any) -> Any:
    """One step of the exponential moving average of the parameters, kept in the dtype of `ema`.

    The decay grows as (1 + step) / (10 + step) up to `decay`, so that early averages forget the initial weights.
    """
    step = jnp.asarray(step, jnp.float32)
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: (p + keep * (e - p)).astype(e.dtype), ema, params)


def describe_groups(params: Any, config: OptimizerConfig, frozen: Any = ()) -> str:
    """A table for the log: one line for each distinct group, with how many tensors and parameters it holds and an example."""
    groups = param_groups(params, config)
    rows: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for path, leaf in _variables(params):
        rows.setdefault((f"{groups[path].weight_decay:g}", f"{groups[path].lr_scale:g}"), []).append((path, _size(leaf)))
    for path, leaf in _variables(frozen):
        rows.setdefault(("frozen", "-"), []).append((path, _size(leaf)))
    lines = [f"{'tensors':>8} {'parameters':>14} {'decay':>8} {'lr scale':>9}  first"]
    for (decay, scale), members in rows.items():
        lines.append(f"{len(members):>8} {sum(size for _, size in members):>14,} {decay:>8} {scale:>9}  {members[0][0]}")
    return "\n".join(lines)


def _size(leaf: Any) -> int:
    return math.prod((leaf.get_value() if _is_variable(leaf) else leaf).shape)
