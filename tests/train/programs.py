"""Tiny models and batches for tests of the training step itself, without a job around it."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxgen.heads.decoder import SequenceHead
from jaxgen.heads.predictor import DirectPredictor, LanguageModel, SequencePredictor
from jaxgen.models import cnn, hyenadna
from jaxgen.train import objectives, optim
from jaxgen.train.sharding import make_mesh, put_batch
from jaxgen.train.state import Program, TrainState, compile_train_step, init_state

LENGTH, ROWS = 96, 16
HYENADNA = hyenadna.Config(d_model=16, n_layer=2, d_inner=32, filter_order=8, l_max=LENGTH, embed_dropout=0.0)
CNN = cnn.Config(embedding_dim=8, input_len=LENGTH)


def mesh(devices: int = 1, **sizes: int) -> jax.sharding.Mesh:
    """A mesh over the first devices; axes that are not named have size 1."""
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | sizes, jax.devices()[:devices])


def module(kind: str, key: jax.Array, config: Any = None) -> nnx.Module:
    """lm (HyenaDNA), classifier (HyenaDNA with a head) or cnn."""
    rngs = nnx.Rngs(key)
    if kind == "cnn":
        return DirectPredictor(cnn.CNN(config or CNN, rngs))
    backbone = hyenadna.HyenaDNA(config or HYENADNA, rngs)
    if kind == "lm":
        return LanguageModel(backbone)
    return SequencePredictor(backbone, SequenceHead(backbone.config.d_model, 2, rngs))


def batches(kind: str, n: int, rows: int = ROWS) -> list[dict[str, np.ndarray]]:
    """Random batches with left padding, N and a row of weight 0; the class shows in the composition."""
    rng, made = np.random.default_rng(1), []
    for _ in range(n):
        target = rng.integers(0, 2, rows).astype(np.int32)
        tokens = np.where(rng.random((rows, LENGTH)) < 0.3 * target[:, None], 7, rng.integers(7, 12, (rows, LENGTH))).astype(np.int32)
        mask = np.arange(LENGTH) >= rng.integers(0, 12, rows)[:, None]
        tokens[~mask] = 4
        weight = np.ones(rows, np.float32)
        weight[-1] = 0
        batch = {"tokens": tokens, "weight": weight}
        if kind == "lm":
            batch["targets"] = np.concatenate([tokens[:, 1:], np.ones((rows, 1), np.int32)], 1)
        else:
            batch |= {"mask": mask, "target": target}
        made.append(batch)
    return made


def start(
    kind: str,
    on: jax.sharding.Mesh,
    *,
    config: Any = None,
    learning_rate: float = 3e-3,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    freeze: tuple[str, ...] = (),
    clip_norm: float = 1.0,
) -> tuple[Program, TrainState]:
    """A program and its initial state on a mesh."""
    fields = optim.OptimizerConfig(weight_decay=0.1, clip_norm=clip_norm)
    graphdef, optimizer, state = init_state(
        lambda key: module(kind, key, config),
        freeze,
        lambda params: optim.make_optimizer(fields, params, learning_rate),
        on,
        seed=0,
        use_ema=ema_decay > 0,
    )
    objective = objectives.token_cross_entropy(4) if kind == "lm" else objectives.classification
    return Program(graphdef, objective, optimizer, on, accumulate, ema_decay), state


def compile_step(program: Program, state: TrainState, batch: dict[str, np.ndarray]) -> Any:
    """The compiled step, as the loop makes it."""
    return compile_train_step(program, state, put_batch(program.mesh, batch))


def train(program: Program, state: TrainState, data: list[dict[str, np.ndarray]]) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after all batches, and the metrics of each step."""
    step, seen = compile_step(program, state, data[0]), []
    for batch in data:
        state, metrics = step(state, put_batch(program.mesh, batch))
        seen.append({name: float(value) for name, value in metrics.items()})
    return state, seen
