import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import InputError
from jaxgen.train import optim
from jaxgen.train.optim import OptimizerConfig


class Block(nnx.Module):
    def __init__(self, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 3)), axes=("embed", "mlp"))
        self.bias = nnx.Param(jnp.ones(3), decay=False, axes=("mlp",))
        self.frequency = nnx.Param(jnp.ones(3), decay=False, lr_scale=0.5)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.head = nnx.Param(jnp.full((3, 2), 0.5))

    def __call__(self, x):
        for block in self.blocks:
            x = jnp.tanh(x @ block.kernel[...] + block.bias[...]) * block.frequency[...]
        return x @ self.head[...]


def split():
    return nnx.split(Model(nnx.Rngs(0)), nnx.Param)


def loss(graphdef, *states):
    return jnp.mean((nnx.merge(graphdef, *states)(jnp.arange(6.0).reshape(2, 3)) - 1.0) ** 2)


def flat(state):
    return {optim.path_string(path): np.asarray(variable.get_value()) for path, variable in nnx.to_flat_state(state)}


def test_paths():
    _, params = split()
    paths = {optim.path_string(path) for path, _ in nnx.to_flat_state(params)}
    assert "blocks.1.kernel" in paths
    assert {optim.path_string(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]} == paths
    assert optim.match([r"^blocks\.\d+\.bias$"], "blocks.1.bias")
    assert not optim.match([r"^bias$"], "blocks.1.bias")


def test_groups_come_from_metadata_and_patterns():
    _, params = split()
    config = OptimizerConfig(weight_decay=0.1, no_decay=("head",), lr_scale=(r"blocks\.0=0.1",))
    groups = optim.param_groups(params, config)
    assert groups["blocks.0.kernel"] == optim.Group(0.1, 0.1)
    assert groups["blocks.0.bias"].weight_decay == 0.0
    assert groups["blocks.0.frequency"].lr_scale == pytest.approx(0.05)
    assert groups["blocks.1.frequency"].lr_scale == 0.5
    assert groups["head"].weight_decay == 0.0
    assert optim.param_groups(jax.eval_shape(lambda: params), config) == groups
    table = optim.describe_groups(params, config)
    assert "blocks.1.kernel" in table
    assert "frozen" not in table
    trainable, frozen = optim.split_trainable(params, [r"blocks\.1\.kernel"])
    assert [line.split() for line in optim.describe_groups(trainable, config, frozen).splitlines()][-1] == [
        *("1", "9", "frozen", "-", "blocks.1.kernel")
    ]


def test_updates_are_those_of_adamw():
    """Against AdamW written out in numpy, with clipping, groups and a schedule."""
    graphdef, params = split()
    config = OptimizerConfig(betas=(0.9, 0.95), weight_decay=0.1, clip_norm=0.5, lr_scale=("head=2",))
    rate = lambda step: 1e-2 / (1 + step)  # noqa: E731
    optimizer = optim.make_optimizer(config, params, rate)
    groups = optim.param_groups(params, config)

    @jax.jit
    def train_step(params, state):
        grads = jax.grad(lambda p: loss(graphdef, p))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads

    state = jax.jit(optimizer.init)(params)
    expected = {path: value.astype(np.float64) for path, value in flat(params).items()}
    mu, nu = ({path: np.zeros_like(value) for path, value in expected.items()} for _ in range(2))
    for step in range(5):
        params, state, grads = train_step(params, state)
        grads = {path: g.astype(np.float64) for path, g in flat(grads).items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for path, g in grads.items():
            g = g * min(1.0, 0.5 / norm)
            mu[path] = 0.9 * mu[path] + 0.1 * g
            nu[path] = 0.95 * nu[path] + 0.05 * g**2
            adam = mu[path] / (1 - 0.9 ** (step + 1)) / (np.sqrt(nu[path] / (1 - 0.95 ** (step + 1))) + 1e-8)
            scale = groups[path].lr_scale * rate(step)
            expected[path] -= scale * (adam + groups[path].weight_decay * expected[path])
        for path, value in flat(params).items():
            np.testing.assert_allclose(value, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_frozen_parameters_cost_nothing_and_do_not_move():
    graphdef, params = split()
    config = OptimizerConfig(weight_decay=0.1)
    trainable, frozen = optim.split_trainable(params, (r"^blocks\.0",))
    assert set(flat(frozen)) == {"blocks.0.kernel", "blocks.0.bias", "blocks.0.frequency"}
    optimizer = optim.make_optimizer(config, trainable, lambda step: 1e-2)
    state = optimizer.init(trainable)
    moments = [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert len(moments) == 2 * len(flat(trainable)) + 2  # mu, nu and the two step counters
    grads = jax.grad(lambda t: loss(graphdef, t, frozen))(trainable)
    updates, _ = optimizer.update(grads, state, trainable)
    after = flat(nnx.merge_state(optax.apply_updates(trainable, updates), frozen))
    before = flat(params)
    assert all(np.array_equal(after[path], before[path]) == path.startswith("blocks.0") for path in before)


def test_state_keeps_the_metadata_that_sharding_reads():
    _, params = split()
    optimizer = optim.make_optimizer(OptimizerConfig(weight_decay=0.1, clip_norm=1.0), params, lambda step: 1e-3)
    shapes = jax.eval_shape(optimizer.init, params)
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    leaves = [leaf for leaf in jax.tree.leaves(shapes, is_leaf=is_variable) if is_variable(leaf)]
    assert len(leaves) == 2 * len(flat(params))
    assert sum(leaf.get_metadata().get("axes") == ("embed", "mlp") for leaf in leaves) == 4

    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    place = lambda leaf: jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), leaf)  # noqa: E731
    shardings = jax.tree.map(place, shapes, is_leaf=is_variable)
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)


def test_moments_are_float32_whatever_the_parameters():
    _, params = split()
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    optimizer = optim.make_optimizer(OptimizerConfig(clip_norm=1.0), params, 1e-3)
    state = optimizer.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    updates, after = optimizer.update(params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]


def test_moving_average():
    _, params = split()
    ema = jax.tree.map(jnp.zeros_like, params)
    first = jax.jit(optim.ema_update)(ema, params, 0.999, 0)
    np.testing.assert_allclose(flat(first)["head"], 0.9 * flat(params)["head"], rtol=1e-6)
    late = optim.ema_update(ema, params, 0.999, 10**6)
    np.testing.assert_allclose(flat(late)["head"], 0.001 * flat(params)["head"], rtol=1e-3)


def test_config_is_picked_out_of_a_larger_one():
    assert OptimizerConfig.of({"steps": 3, "weight_decay": 0.2, "no_decay": ("x",)}) == OptimizerConfig(weight_decay=0.2, no_decay=("x",))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (OptimizerConfig(lr_scale=("hed=0.1",)), "did you mean 'head'"),
        (OptimizerConfig(lr_scale=("head",)), "PATTERN=FACTOR"),
        (OptimizerConfig(no_decay=("(",)), "not a regular expression"),
    ],
)
def test_wrong_patterns(config, words):
    with pytest.raises(InputError) as error:
        optim.param_groups(split()[1], config)
    assert words in str(error.value)


@pytest.mark.parametrize(("freeze", "words"), [(("block.0",), "matches no parameter"), (("head", "blocks"), "nothing is left to train")])
def test_wrong_freezing(freeze, words):
    with pytest.raises(InputError) as error:
        optim.split_trainable(split()[1], freeze)
    assert words in str(error.value)
