"""The Pallas kernels of the selective scan, interpreted, against the definition in float64; and that they compile for GPU and TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops import selective_scan_kernels as kernels
from jaxgen.ops.selective_scan import selective_scan, selective_scan_reference
from jaxgen.train.sharding import make_mesh

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "bias", "start")
TARGETS = pytest.mark.parametrize("target", ["gpu", "tpu"])


@pytest.fixture
def small(monkeypatch):
    """Blocks so small that tiny arrays have several of everything, which also keeps the interpreted programs short."""
    monkeypatch.setattr(kernels, "_CHUNK", 4)
    monkeypatch.setattr(kernels, "_INNER", 2)
    monkeypatch.setattr(kernels, "_CHANNELS", {"gpu": 4, "tpu": 4})
    monkeypatch.setattr(kernels, "_SHORTEST_STRETCH", 8)
    monkeypatch.setattr(kernels, "_TPU_STRETCH", 8)


def inputs(length: int, channels: int = 6, n: int = 3, groups: int = 1, batch: int = 2, seed: int = 0) -> list[np.ndarray]:
    """Everything that `selective_scan` takes, in the order of NAMES, float32."""
    rng = np.random.default_rng(seed)
    wide, narrow, state = (batch, length, channels), (batch, length, groups, n), (batch, channels, n)
    shapes = (wide, wide, (channels, n), narrow, narrow, (channels,), wide, (channels,), state)
    values = [rng.normal(size=shape) for shape in shapes]
    values[2] = -np.exp(values[2])
    return [np.float32(value) for value in values]


def definition(u, delta, A, B, C, D, z, bias, start, *, softplus: bool = True, reverse: bool = False):
    """The scan as its docstring has it, in the dtype of its inputs."""

    def turn(x):
        return jnp.flip(x, 1) if reverse else x

    dt = delta + bias
    dt = jax.nn.softplus(dt) if softplus else dt
    per_group = u.shape[2] // B.shape[2]
    parts = []
    for group in range(B.shape[2]):
        c = slice(group * per_group, (group + 1) * per_group)
        rows = turn(u[..., c]), turn(dt[..., c]), A[c], turn(B[:, :, group]), turn(C[:, :, group])
        parts.append(selective_scan_reference(*rows, initial_state=start[:, c]))
    y = turn(jnp.concatenate([part[0] for part in parts], 2)) + D * u
    return y if z is None else y * jax.nn.silu(z), jnp.concatenate([part[1] for part in parts], 1)


def ours(target: str, *, softplus: bool = True, reverse: bool = False):
    def run(u, delta, A, B, C, D, z, bias, start):
        options = {"delta_softplus": softplus, "initial_state": start, "reverse": reverse, "implementation": target}
        return selective_scan(u, delta, A, B, C, D, z, bias, **options)

    return run


def with_gradients(function, x, cotangents):
    """[out, last, gradients ...] of one compiled program."""

    def both(x, cotangents):
        found, pull = jax.vjp(function, *x)
        cotangents = jax.tree.map(lambda c, f: c.astype(f.dtype), cotangents, found)
        return [*found, *(g for g in pull(cotangents) if g is not None)]

    return [np.asarray(value, np.float64) for value in jax.jit(both)(x, cotangents)]


def exact(x, cotangents, **options):
    with jax.enable_x64(True):
        x64, c64 = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), (x, cotangents))
        return with_gradients(lambda *x: definition(*x, **options), x64, c64)


def cotangents_of(x) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(9)
    return np.float32(rng.normal(size=x[0].shape)), np.float32(rng.normal(size=x[8].shape))


def assert_close(found, expected, tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected)):
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(initial=0), 1e-3), rtol=0, err_msg=str(i))


@pytest.mark.parametrize(
    ("target", "shape", "options"),
    [
        ("tpu", {"length": 37}, {}),  # neither length nor channels are multiples of anything
        ("gpu", {"length": 37}, {"reverse": True}),
        ("tpu", {"length": 37}, {"reverse": True}),
        ("gpu", {"length": 16, "channels": 16, "groups": 2, "n": 4}, {"softplus": False}),
        ("tpu", {"length": 16, "channels": 16, "groups": 2, "n": 4}, {"reverse": True, "softplus": False}),
        ("gpu", {"length": 1, "channels": 4, "n": 1, "batch": 1}, {}),
    ],
    ids=str,
)
def test_values_and_gradients_agree_with_the_definition(small, target, shape, options):
    x = inputs(**shape)
    if not options.get("softplus", True):  # the case without softplus has no gate either
        x[1], x[6] = 0.2 * np.exp(x[1]), None
    cotangents = cotangents_of(x)
    assert_close(with_gradients(ours(target, **options), x, cotangents), exact(x, cotangents, **options), 3e-5)


@TARGETS
def test_bfloat16_in_bfloat16_out_float32_inside(small, target):
    x = [jnp.asarray(v, jnp.bfloat16) if name in ("u", "delta", "B", "C", "z") else v for name, v in zip(NAMES, inputs(13))]
    cotangents = cotangents_of(x)
    exact_values = exact([np.asarray(v, np.float32) for v in x], cotangents)
    dtypes = jax.eval_shape(jax.grad(lambda *x: ours(target)(*x)[0].astype(jnp.float32).sum(), argnums=tuple(range(9))), *x)
    assert [g.dtype for g in dtypes] == [jnp.asarray(v).dtype for v in x]
    found = with_gradients(ours(target), x, cotangents)
    assert_close(found, exact_values, 1e-2)
    assert_close(found[1:2], exact_values[1:2])


@pytest.mark.parametrize(("target", "reverse"), [("gpu", False), ("tpu", True)])
def test_shards_make_the_whole(small, target, reverse):
    x = inputs(21, channels=8, batch=2)
    cotangents = cotangents_of(x)
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 1, "tensor": 2, "sequence": 2})):
        found = with_gradients(ours(target, reverse=reverse), x, cotangents)
    assert_close(found, exact(x, cotangents, reverse=reverse), 3e-5)


def test_narrow_groups_are_left_to_xla(small):
    x = inputs(9, channels=6, groups=3)
    assert not kernels.supports("gpu", 6, 3)
    assert_close(jax.jit(ours("gpu"))(*x), jax.jit(ours("blocked"))(*x), 0)


def abstract(length: int, channels: int, n: int, dtype, sharding=None) -> list[jax.ShapeDtypeStruct]:
    """Shapes as a model in `dtype` has them."""
    kept = ("A", "D", "bias", "start")
    x = zip(NAMES, inputs(0, channels, n, batch=1))
    return [
        jax.ShapeDtypeStruct([length if s == 0 else s for s in v.shape], jnp.float32 if name in kept else dtype, sharding=sharding)
        for name, v in x
    ]


def gradient(target: str, **options):
    return jax.grad(lambda *x: ours(target, **options)(*x)[0].astype(jnp.float32).sum(), argnums=tuple(range(9)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_lowers_to_triton_for_cuda(dtype):
    """As far as a machine without GPU can go: the kernels are Triton programs that the lowering accepts."""
    text = jax.jit(gradient("gpu", reverse=True)).trace(*abstract(1000, 64, 16, dtype)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @__gpu$xla.gpu.triton") == 4  # two passes forward, two backward


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "accelerator"), [("v4:2x2x1", "v4-8"), ("v5e:2x2", "v5litepod-4"), ("v6e:2x2", "v6e-4")])
def test_compiles_for_tpu(topology, accelerator, monkeypatch):
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": accelerator, "TPU_WORKER_HOSTNAMES": "localhost"}.items():
        monkeypatch.setenv(name, value)
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    length, channels = 131_072, 512
    shapes = abstract(length, channels, 16, jnp.bfloat16, jax.sharding.SingleDeviceSharding(device))
    compiled = jax.jit(gradient("tpu")).lower(*shapes).compile()
    assert compiled.as_text().count("tpu_custom_call") == 2
    # Edges of 16 positions and the parts of dB and dC: a small multiple of one input in float32.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4 * length * channels


@pytest.mark.slow
@TARGETS
def test_full_blocks(target):
    x = inputs(300, channels=160, n=16)
    cotangents = cotangents_of(x)
    assert_close(with_gradients(ours(target), x, cotangents), exact(x, cotangents), 3e-5)
