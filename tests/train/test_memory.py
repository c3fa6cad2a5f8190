"""What XLA's analysis says of a training step, before anything runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgen.config import load_config
from jaxgen.heads.predictor import LanguageModel
from jaxgen.models.registry import resolve
from jaxgen.train import objectives, optim
from jaxgen.train.memory import memory_report, needed_bytes
from jaxgen.train.sharding import make_mesh
from jaxgen.train.state import Program, compile_train_step, init_state


def compiled_step(model: str, length: int, **fields) -> jax.stages.Compiled:
    """One training step on one row, on one device; nothing of the size of the row is made."""
    config = load_config("configs/pretrain.py:caduceus_ps_131k")
    family, size = resolve(model)
    size = dataclasses.replace(size, **fields)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    optimizer = optim.OptimizerConfig.of(config.train.to_dict())

    def build(key: jax.Array) -> nnx.Module:
        return LanguageModel(family.build(size, nnx.Rngs(key)))

    graphdef, update, state = init_state(build, (), lambda params: optim.make_optimizer(optimizer, params, 1e-3), mesh, 0, False)
    program = Program(graphdef, objectives.token_cross_entropy(4, np.ones(12)), update, mesh)
    shapes = {"tokens": ((1, length), jnp.int32), "targets": ((1, length), jnp.int32), "weight": ((1,), jnp.float32)}
    return compile_train_step(program, state, {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()})


def test_memory_grows_with_the_length():
    small, large = (compiled_step("gpt_neo_smoke", length, d_model=16, n_heads=2, d_inner=32, max_positions=512) for length in (64, 512))
    assert 0 < needed_bytes(small) < needed_bytes(large) < 16 * needed_bytes(small)
    assert "of device memory" in memory_report(small)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_caduceus_ps_at_131k_fits_one_gpu(dtype):
    assert needed_bytes(compiled_step("caduceus_ps_131k", 1 << 17, dtype=dtype)) < 40 * 2**30
