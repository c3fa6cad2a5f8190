"""The GenomicBenchmarks CNN baseline as used in the Caduceus evaluation (Gresova et al. 2023, doi 10.1186/s12863-023-01123-8).

Source of the numerics: kuleshov-group/caduceus `src/models/baseline/genomics_benchmark_cnn.py`. Token ids in, class logits out.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from jaxgen.checkpoints.key_table import CONV, LINEAR, Row, strip_prefix
from jaxgen.errors import InputError
from jaxgen.layers.core import BatchNorm, Conv1d, Embedding, Linear, normal, uniform_fan_in
from jaxgen.layers.output import Output
from jaxgen.models.family import Family
from jaxgen.ops.partition import distributed

WIDTH, CHANNELS, HIDDEN = 8, (16, 8, 4), 512


@dataclasses.dataclass(frozen=True)
class Config:
    """The input length is part of the shape: the dense layer sees every position."""

    number_of_classes: int = 2
    vocab_size: int = 12
    embedding_dim: int = 100
    input_len: int = 200
    dtype: str = "float32"

    @property
    def n_positions(self) -> int:
        """Positions left after three (convolution, max-pool 2) stages."""
        length = self.input_len
        for _ in CHANNELS:
            length = (length - WIDTH + 1) // 2
        return length


def _whole_rows(x: jax.Array) -> jax.Array:
    """Rows over the devices, positions and channels whole on each.

    XLA's partitioner (0.10) computes wrong gradients of convolution and batch norm when it cuts them along `tensor` or `sequence`.
    """
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp"))) if distributed() else x


class Stage(nnx.Module):
    """Valid convolution, batch norm, optional ReLU, max-pool 2."""

    def __init__(self, n_in: int, n_out: int, relu: bool, rngs: nnx.Rngs):
        self.relu = relu
        self.conv = Conv1d(n_in, n_out, WIDTH, rngs)
        self.norm = BatchNorm(n_out, rngs)

    def __call__(self, x_blc: jax.Array, train: bool) -> jax.Array:
        return self.after_convolution(self.conv(_whole_rows(x_blc)), train)

    def of_tokens(self, tokens: jax.Array, embedding: Embedding, dtype: jnp.dtype, train: bool) -> jax.Array:
        """The stage of the embedded tokens (batch, length), as one product of one-hot windows and the kernel of embeddings: a vocabulary
        is much smaller than its embeddings, and this convolution is nearly all of the model's work."""
        kernel = jnp.einsum("ve,wec->wvc", embedding.table[...], self.conv.kernel[...]).astype(dtype)
        letters, n = embedding.shares(tokens, dtype), tokens.shape[1] - WIDTH + 1
        windows = jnp.concatenate([letters[:, i : i + n] for i in range(WIDTH)], axis=-1)
        product = _whole_rows(windows) @ kernel.reshape(-1, kernel.shape[2])
        return self.after_convolution(product + self.conv.bias[...].astype(dtype), train)

    def after_convolution(self, h: jax.Array, train: bool) -> jax.Array:
        h = self.norm(_whole_rows(h), train=train)
        h = jax.nn.relu(h) if self.relu else h
        even = h[:, : h.shape[1] // 2 * 2]
        return even.reshape(h.shape[0], -1, 2, h.shape[2]).max(2)


class CNN(nnx.Module):
    """Token ids (batch, input_len) -> Output with the class logits (batch, classes) as `predictions`, and as `hidden`."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        if config.n_positions < 1:
            raise InputError(f"CNN: input_len {config.input_len} is too short; three stages need at least 57 bases")
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.embedding_dim, rngs, init=normal(1.0))
        widths = (config.embedding_dim, *CHANNELS)
        self.stages = nnx.List([Stage(n_in, n_out, i == 0, rngs) for i, (n_in, n_out) in enumerate(zip(widths, CHANNELS))])
        n_features = CHANNELS[-1] * config.n_positions
        self.dense = Linear(n_features, HIDDEN, rngs, bias_init=uniform_fan_in(n_features))
        self.classifier = Linear(HIDDEN, config.number_of_classes, rngs, axes=("mlp", None), bias_init=uniform_fan_in(HIDDEN))

    def features(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Flattened, channel-major convolution features (batch, 4 * positions)."""
        if tokens.shape[1] != self.config.input_len:
            raise InputError(f"CNN: input of {tokens.shape[1]} tokens, but the model is built for input_len {self.config.input_len}")
        first, *others = self.stages
        h = first.of_tokens(tokens, self.embedding, jnp.dtype(self.config.dtype), train)
        for stage in others:
            h = stage(h, train)
        return jnp.swapaxes(h, 1, 2).reshape(h.shape[0], -1)

    def __call__(self, tokens: jax.Array, *, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None) -> Output:
        del mask, key  # padding is a token like any other here, and there is no dropout
        logits = self.classifier(self.dense(self.features(tokens, train=train))).astype(jnp.float32)
        return Output(logits, predictions=logits)


def key_table(config: Config) -> tuple[Row, ...]:
    """Names of the Lightning checkpoint, without `model.`, <-> ours."""
    del config
    rows = [Row("embeddings.weight", "embedding.table")]
    for i, (conv, norm) in enumerate(((0, 1), (4, 5), (7, 8))):
        rows += [
            Row(f"cnn_model.{conv}.weight", f"stages.{i}.conv.kernel", CONV),
            Row(f"cnn_model.{conv}.bias", f"stages.{i}.conv.bias"),
            Row(f"cnn_model.{norm}.weight", f"stages.{i}.norm.scale"),
            Row(f"cnn_model.{norm}.bias", f"stages.{i}.norm.bias"),
            Row(f"cnn_model.{norm}.running_mean", f"stages.{i}.norm.mean"),
            Row(f"cnn_model.{norm}.running_var", f"stages.{i}.norm.var"),
            Row(f"cnn_model.{norm}.num_batches_tracked", None),
        ]
    for i, ours in enumerate(("dense", "classifier")):
        rows += [Row(f"dense_model.{i}.weight", f"{ours}.kernel", LINEAR), Row(f"dense_model.{i}.bias", f"{ours}.bias")]
    return tuple(rows)


def _public_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without `model.`; what Lightning keeps beside the model is left out."""
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    return strip_prefix(inside or tensors, ("model.",))


def _read_config(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray], weights_file: str) -> Config:
    del weights_file
    vocab_size, embedding_dim = tensors["embeddings.weight"].shape if "embeddings.weight" in tensors else (12, 100)
    return Config(
        number_of_classes=public["number_of_classes"],
        vocab_size=public.get("vocab_size", vocab_size),
        embedding_dim=public.get("embedding_dim", embedding_dim),
        input_len=public["input_len"],
    )


FAMILY = Family(
    name="cnn",
    config=Config,
    build=CNN,
    sizes={"default": Config(), "smoke": Config(embedding_dim=32)},
    default_size="default",
    recognises=lambda public, tensors: any(re.search(r"(^|\.)cnn_model\.0\.weight$", name) for name in tensors),
    read_config=_read_config,
    write_config=lambda config: (
        {"model_type": "genomic_benchmark_cnn"}
        | {name: getattr(config, name) for name in ("number_of_classes", "vocab_size", "embedding_dim", "input_len")}
    ),
    public_names=_public_names,
    key_table=key_table,
    export_name=lambda name: "model." + name,
    tokenizer=lambda config: ("character", {}),
    head_keys=r"^$",
    for_task=lambda config, length, classes: dataclasses.replace(config, input_len=length, number_of_classes=classes),
    emits="predictions",
)
