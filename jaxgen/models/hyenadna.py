"""HyenaDNA: causal, character-level language model of DNA with implicit long convolutions (Nguyen et al. 2023, arXiv 2306.15794).

Source of the numerics: HazyResearch/hyena-dna `standalone_hyenadna.py` and the hub's `LongSafari/hyenadna-*-hf` remote code.
Array names end in their axes: b batch, l length, d features, e positional features, f filter width.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgen.checkpoints.key_table import LINEAR, Row, strip_prefix
from jaxgen.errors import InputError
from jaxgen.layers.core import Buffer, CausalDepthwiseConv, Embedding, LayerNorm, Linear, dropout, normal, padded_size, param
from jaxgen.layers.output import Output
from jaxgen.layers.stack import make_stack, scan_stack
from jaxgen.models.family import Family
from jaxgen.ops.fft_conv import causal_fft_conv


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and numerics. `l_max` is the longest input: the positional features of the filters are built for it and never rescaled."""

    d_model: int = 128
    n_layer: int = 2
    d_inner: int = 512
    l_max: int = 1026
    vocab_size: int = 12
    pad_vocab_size_multiple: int = 8
    order: int = 2
    short_filter_order: int = 3
    emb_dim: int = 5
    filter_order: int = 64
    num_inner_mlps: int = 2
    activation_freq: float = 10.0
    modulate: bool = True
    # 0.05 in the published inference code (LongSafari checkpoints), 0.0 in the training code (Caduceus-style pre-training).
    modulation_shift: float = 0.05
    tie_embeddings: bool = True
    initializer_range: float = 0.02
    # Of the norms in the blocks, and of the last one, the only one that the hub's `layer_norm_epsilon` is of.
    layer_norm_epsilon: float = 1e-5
    final_norm_epsilon: float = 1e-5
    embed_dropout: float = 0.1
    dtype: str = "float32"
    remat: str = "none"

    @property
    def n_tokens(self) -> int:
        """Rows of the embedding: the vocabulary padded to a multiple."""
        return padded_size(self.vocab_size, self.pad_vocab_size_multiple)


def _size(d_model: int, n_layer: int, length: int, remat: str = "none") -> Config:
    return Config(d_model=d_model, n_layer=n_layer, d_inner=4 * d_model, l_max=length, tie_embeddings=False, remat=remat)


SIZES = {
    # Of the Caduceus pipeline; the others are those of LongSafari.
    "1k": Config(d_model=256, n_layer=4, d_inner=1024, modulation_shift=0.0),
    "tiny_1k": _size(128, 2, 1026),
    "tiny_1k_d256": _size(256, 2, 1026),
    "tiny_16k_d128": _size(128, 2, 16386),
    "small_32k": _size(256, 4, 32770),
    "medium_160k": _size(256, 8, 160002, "full"),
    "medium_450k": _size(256, 8, 450002, "full"),
    "large_1m": _size(256, 8, 1000002, "full"),
    "smoke": Config(d_model=64, n_layer=2, d_inner=256, l_max=1026),
}
HUB = {
    "tiny_1k": "LongSafari/hyenadna-tiny-1k-seqlen-hf",
    "tiny_1k_d256": "LongSafari/hyenadna-tiny-1k-seqlen-d256-hf",
    "tiny_16k_d128": "LongSafari/hyenadna-tiny-16k-seqlen-d128-hf",
    "small_32k": "LongSafari/hyenadna-small-32k-seqlen-hf",
    "medium_160k": "LongSafari/hyenadna-medium-160k-seqlen-hf",
    "medium_450k": "LongSafari/hyenadna-medium-450k-seqlen-hf",
    "large_1m": "LongSafari/hyenadna-large-1m-seqlen-hf",
}


def positional_features(l_max: int, emb_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(z, t): z (l_max, emb_dim) = [t, cos(f w), -sin(f w)] with bands f, and t (l_max,) from 0 to 1."""
    t = np.linspace(0, 1, l_max, dtype=np.float32)
    bands = (emb_dim - 1) // 2
    f = np.linspace(1e-4, bands - 1, bands, dtype=np.float32)
    angle = (2 * math.pi * np.arange(l_max, dtype=np.float32) / l_max)[:, None] * f
    return np.concatenate([t[:, None], np.cos(angle), -np.sin(angle)], -1).astype(np.float32), t


def decay_rates(n_channels: int, fast: float = 0.3, slow: float = 1.5, target: float = 1e-2) -> np.ndarray:
    """(n_channels,) exponents of the window, from slow to fast decay."""
    return np.linspace(math.log(target) / slow, math.log(target) / fast, n_channels, dtype=np.float32)


class ImplicitFilter(nnx.Module):
    """The filter of the long convolution as a small sine MLP of position, times an exponential window."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        f, n_channels = config.filter_order, config.d_model * (config.order - 1)
        widths = [config.emb_dim] + [f] * (config.num_inner_mlps + 1)
        init = normal(config.initializer_range)

        def linear(n_in: int, n_out: int, use_bias: bool = True) -> Linear:
            layer = Linear(n_in, n_out, rngs, axes=(None, None), use_bias=use_bias, init=init)
            layer.kernel.set_metadata(decay=False)
            return layer

        self.layers = nnx.List([linear(n_in, n_out) for n_in, n_out in itertools.pairwise(widths)])
        self.last = linear(f, n_channels, use_bias=False)
        self.freq = param(rngs, lambda *_: jnp.full((f,), config.activation_freq), (f,), (None,), decay=False)
        self.bias = param(rngs, normal(1.0), (n_channels,), (None,), decay=False)
        z_le, t_l = positional_features(config.l_max, config.emb_dim)
        self.z, self.t = Buffer(jnp.asarray(z_le)), Buffer(jnp.asarray(t_l))
        self.deltas = Buffer(jnp.asarray(decay_rates(n_channels)))

    def __call__(self, length: int) -> jax.Array:
        """Filter of the first `length` lags, (length, channels), float32."""
        h_lf = self.z[...][:length]
        for layer in self.layers:
            h_lf = jnp.sin(self.freq[...] * layer(h_lf))
        k_ld = self.last(h_lf)
        if self.config.modulate:
            window_ld = jnp.exp(-self.t[...][:length, None] * jnp.abs(self.deltas[...]))
            k_ld = k_ld * (window_ld + self.config.modulation_shift)
        return k_ld


class HyenaOperator(nnx.Module):
    """Projections, short convolution, then gating interleaved with long convolutions."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        d, init = config.d_model, normal(config.initializer_range)
        out_init = normal(config.initializer_range / math.sqrt(2 * config.n_layer))
        self.in_proj = Linear(d, (config.order + 1) * d, rngs, init=init)
        self.short_filter = CausalDepthwiseConv((config.order + 1) * d, config.short_filter_order, rngs)
        self.filter = ImplicitFilter(config, rngs)
        self.out_proj = Linear(d, d, rngs, axes=("mlp", "embed"), init=out_init)

    def __call__(self, x_bld: jax.Array, mask_bl: jax.Array | None = None) -> jax.Array:
        keep = (lambda h: h) if mask_bl is None else (lambda h: h * mask_bl[..., None].astype(h.dtype))
        d, length = self.config.d_model, x_bld.shape[1]
        filters = jnp.split(self.filter(length), self.config.order - 1, axis=-1)
        skips = jnp.split(self.filter.bias[...], self.config.order - 1)
        mixed = self.short_filter(keep(self.in_proj(x_bld)))
        first, *gates, v_bld = (mixed[..., i * d : (i + 1) * d] for i in range(self.config.order + 1))
        for gate_bld, k_ld, skip_d in zip(reversed(gates), filters, skips):
            v_bld = causal_fft_conv(keep(v_bld * gate_bld), k_ld, skip_d)
        return self.out_proj(v_bld * first)


class Block(nnx.Module):
    """Pre-norm block on a float32 residual stream: (hidden, residual) -> (MLP output, residual before it)."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        d, init = config.d_model, normal(config.initializer_range)
        out_init = normal(config.initializer_range / math.sqrt(2 * config.n_layer))
        self.norm1 = LayerNorm(d, rngs, eps=config.layer_norm_epsilon)
        self.mixer = HyenaOperator(config, rngs)
        self.norm2 = LayerNorm(d, rngs, eps=config.layer_norm_epsilon)
        self.fc1 = Linear(d, config.d_inner, rngs, init=init)
        self.fc2 = Linear(config.d_inner, d, rngs, axes=("mlp", "embed"), init=out_init)

    def __call__(self, hidden_bld: jax.Array, residual_bld: jax.Array, mask_bl: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        dtype = hidden_bld.dtype
        residual_bld = residual_bld + hidden_bld
        hidden_bld = self.mixer(self.norm1(residual_bld, dtype), mask_bl)
        residual_bld = residual_bld + hidden_bld
        hidden_bld = self.fc2(jax.nn.gelu(self.fc1(self.norm2(residual_bld, dtype)), approximate=True))
        return hidden_bld, residual_bld


class HyenaDNA(nnx.Module):
    """Token ids (batch, length) -> Output with language-model logits."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        init = normal(config.initializer_range)
        self.embedding = Embedding(config.n_tokens, config.d_model, rngs, init=init)
        self.blocks = make_stack(lambda r: Block(config, r), config.n_layer, rngs)
        self.norm = LayerNorm(config.d_model, rngs, eps=config.final_norm_epsilon)
        self.lm_head = (
            None
            if config.tie_embeddings
            else Linear(config.d_model, config.n_tokens, rngs, axes=("embed", "vocab"), use_bias=False, init=init)
        )

    def trace(self, tokens_bl: jax.Array, mask_bl: jax.Array | None = None, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """(embedding, per-block MLP output, per-block residual before it is added), the last two with a leading layer axis."""
        self._check_length(tokens_bl.shape[1])
        x_bld = self._embed(tokens_bl, key)
        _, (hidden, residual) = self._run(x_bld, mask_bl, collect=True)
        return x_bld, hidden, residual

    def _check_length(self, length: int) -> None:
        if length > self.config.l_max:
            raise InputError(
                f"HyenaDNA: input of {length} tokens is longer than the model's l_max {self.config.l_max}; "
                "use a longer model or set data.max_length lower"
            )

    def _embed(self, tokens_bl: jax.Array, key: jax.Array | None) -> jax.Array:
        return dropout(self.embedding(tokens_bl, jnp.dtype(self.config.dtype)), self.config.embed_dropout, key)

    def _run(self, x_bld: jax.Array, mask_bl: jax.Array | None, *, collect: bool) -> tuple[Any, Any]:
        def step(block: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            carry = block(*carry, mask_bl)
            return carry, carry if collect else None

        return scan_stack(self.blocks, step, (x_bld, jnp.zeros_like(x_bld, jnp.float32)), remat=self.config.remat)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
        hidden_states: bool = False,
    ) -> Output:
        """`mask` (batch, length), true at real tokens, keeps padding out of every convolution (the original lets it in: pass None).

        `key` turns dropout on. `hidden_states` are the embedding, each block's output with its residual, and `hidden`.
        """
        del train  # nothing here depends on it but dropout
        self._check_length(tokens.shape[1])
        x_bld = self._embed(tokens, key)
        (hidden_bld, residual_bld), collected = self._run(x_bld, mask, collect=hidden_states)
        hidden = self.norm(residual_bld + hidden_bld, x_bld.dtype)
        states = None
        if hidden_states:
            states = jnp.concatenate([x_bld[None], (collected[0] + collected[1]).astype(x_bld.dtype), hidden[None]])
        hidden32 = hidden.astype(jnp.float32)
        logits = self.embedding.attend(hidden32) if self.lm_head is None else self.lm_head(hidden32)
        return Output(hidden, logits, states)


# Public checkpoints -------------------------------------------------------------------------------------------------------------

_PREFIXES = ("model.backbone.", "hyena.backbone.", "backbone.", "model.", "hyena.")


def public_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The published layouts under one set of names: without prefix, and without the infix of activation checkpointing."""
    if any(name.startswith("model.") for name in tensors):  # Lightning keeps metrics beside the model
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(("model.", "decoder."))}
    stripped = strip_prefix(tensors, _PREFIXES)
    return {name.replace(".mixer.layer.", ".mixer.").replace(".mlp.layer.", ".mlp."): tensor for name, tensor in stripped.items()}


def key_table(config: Config) -> tuple[Row, ...]:
    """Public names (hub `-hf` layout, without its prefix) <-> ours; `{i}` is the layer."""
    block, mixer, filter_fn = "layers.{i}.", "layers.{i}.mixer.", "layers.{i}.mixer.filter_fn."
    rows = [Row("embeddings.word_embeddings.weight", "embedding.table")]
    for name in ("norm1", "norm2"):
        rows += [Row(f"{block}{name}.weight", f"blocks.{name}.scale"), Row(f"{block}{name}.bias", f"blocks.{name}.bias")]
    for public, ours in (("mlp.fc1", "fc1"), ("mlp.fc2", "fc2"), ("mixer.in_proj", "mixer.in_proj"), ("mixer.out_proj", "mixer.out_proj")):
        rows += [Row(f"{block}{public}.weight", f"blocks.{ours}.kernel", LINEAR), Row(f"{block}{public}.bias", f"blocks.{ours}.bias")]
    rows += [
        Row(mixer + "short_filter.weight", "blocks.mixer.short_filter.kernel", "c 1 w -> w c"),
        Row(mixer + "short_filter.bias", "blocks.mixer.short_filter.bias"),
        Row(filter_fn + "bias", "blocks.mixer.filter.bias"),
        Row(filter_fn + "pos_emb.z", "blocks.mixer.filter.z", "1 l e -> l e"),
        Row(filter_fn + "pos_emb.t", "blocks.mixer.filter.t", "1 l 1 -> l"),
        Row(filter_fn + "modulation.deltas", "blocks.mixer.filter.deltas", "1 1 d -> d"),
    ]
    rows += filter_rows(config.num_inner_mlps, filter_fn, "blocks.mixer.filter.")
    rows += [Row("ln_f.weight", "norm.scale"), Row("ln_f.bias", "norm.bias")]
    if config.tie_embeddings:
        rows.append(Row("lm_head.weight", None))
    else:
        rows.append(Row("lm_head.weight", "lm_head.kernel", LINEAR, tied_to="embeddings.word_embeddings.weight"))
    return tuple(rows)


def filter_rows(num_inner_mlps: int, public: str, ours: str) -> list[Row]:
    """Rows of the implicit filter's MLP. Its sine frequency is one tensor that some files store once and some at every position."""
    rows, n, mlp = [], num_inner_mlps + 1, public + "implicit_filter."
    for j in range(n):
        rows.append(Row(f"{mlp}{2 * j}.weight", f"{ours}layers.{j}.kernel", LINEAR))
        rows.append(Row(f"{mlp}{2 * j}.bias", f"{ours}layers.{j}.bias"))
    sines = [f"{mlp}{2 * j + 1}.freq" for j in range(n)]
    rows.append(Row(sines[0], ours + "freq", "1 f -> f", also_public=tuple(sines[1:])))
    rows.append(Row(f"{mlp}{2 * n}.weight", ours + "last.kernel", LINEAR))
    return rows


def _read_config(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray], weights_file: str) -> Config:
    """Config of either public form: flat (-hf) or with a `layer` group (original and repo-trained)."""
    hf = "layer" not in public
    layer = {} if hf else public["layer"]
    embedding, head = tensors.get("embeddings.word_embeddings.weight"), tensors.get("lm_head.weight")
    tied = bool(public.get("tie_word_embeddings", False)) if hf else True
    if head is not None and embedding is not None:
        tied = tied and np.array_equal(head, embedding)
    # No published config says which shift a checkpoint was trained with; its layout does. Repo-trained runs leave a last.ckpt.
    shift = public.get("modulation_shift", layer.get("shift", 0.0 if weights_file == "last.ckpt" else 0.05))
    if not public.get("train_freq", True):
        raise InputError("config.json: HyenaDNA with train_freq false was never published and is not supported")
    # The hub's code pads by two whatever the width; what we export says the shift too, and is causal.
    if hf and "modulation_shift" not in public and public.get("short_filter_order", 3) != 3:
        raise InputError(f"config.json: HyenaDNA with short_filter_order={public['short_filter_order']} is not supported; only 3 is causal")
    d_model, last_epsilon = public["d_model"], public.get("layer_norm_epsilon", 1e-5)
    return Config(
        d_model=d_model,
        n_layer=public.get("n_layer", 12),
        d_inner=public.get("d_inner") or 4 * d_model,
        l_max=public.get("max_seq_len", 1024) if hf else layer.get("l_max", 1026),
        vocab_size=public.get("vocab_size", 12),
        pad_vocab_size_multiple=public.get("pad_vocab_size_multiple", 8),
        order=public.get("hyena_order", 2) if hf else layer.get("order", 2),
        short_filter_order=public.get("short_filter_order", 3) if hf else layer.get("short_filter_order", 3),
        emb_dim=public.get("emb_dim", 3) if hf else layer.get("emb_dim", 3),
        filter_order=public.get("filter_order", 64) if hf else layer.get("filter_order", 64),
        num_inner_mlps=public.get("num_inner_mlps", 2) if hf else layer.get("num_inner_mlps", 2),
        activation_freq=float(public.get("activation_freq", 1) if hf else layer.get("w", 1)),
        modulate=True if hf else layer.get("modulate", True),
        modulation_shift=float(shift),
        tie_embeddings=tied,
        initializer_range=public.get("initializer_range", 0.02),
        layer_norm_epsilon=public.get("block_norm_epsilon", 1e-5) if hf else last_epsilon,
        final_norm_epsilon=last_epsilon,
        embed_dropout=public.get("embed_dropout", 0.1),
    )


def _write_config(config: Config) -> dict[str, Any]:
    """The hub's `-hf` config.json, plus `modulation_shift` and `block_norm_epsilon`, which that format lacks."""
    return {
        "model_type": "hyenadna",
        "architectures": ["HyenaDNAForCausalLM"],
        "d_model": config.d_model,
        "n_layer": config.n_layer,
        "d_inner": config.d_inner,
        "max_seq_len": config.l_max,
        "vocab_size": config.vocab_size,
        "pad_vocab_size_multiple": config.pad_vocab_size_multiple,
        "hyena_order": config.order,
        "short_filter_order": config.short_filter_order,
        "emb_dim": config.emb_dim,
        "filter_order": config.filter_order,
        "num_inner_mlps": config.num_inner_mlps,
        "activation_freq": config.activation_freq,
        "modulation_shift": config.modulation_shift,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "layer_norm_epsilon": config.final_norm_epsilon,
        "block_norm_epsilon": config.layer_norm_epsilon,
        "embed_dropout": config.embed_dropout,
        "hyena_dropout": 0.0,
        "hyena_filter_dropout": 0.0,
        "train_freq": True,
        "use_bias": True,
        "pad_token_id": 4,
        "torch_dtype": "float32",
    }


def _token_flops(config: Config, length: int) -> float:
    """Multiply-adds counted twice; a real FFT of n = 2 length at 2.5 n log2 n, two per channel and row (the filter's is shared)."""
    d = config.d_model
    dense = 2 * d * ((config.order + 1) * d + d + 2 * config.d_inner) + 2 * d * config.n_tokens / config.n_layer
    n = 2 * length
    fft = (config.order - 1) * d * 2 * 2.5 * n * math.log2(n) / length
    return config.n_layer * (dense + fft + 2 * config.short_filter_order * (config.order + 1) * d)


FAMILY = Family(
    name="hyenadna",
    config=Config,
    build=HyenaDNA,
    sizes=SIZES,
    default_size="tiny_1k",
    hub=HUB,
    recognises=lambda public, tensors: (
        public.get("model_type") == "hyenadna" or any(".filter_fn.implicit_filter." in name and ".layers." in name for name in tensors)
    ),
    read_config=_read_config,
    write_config=_write_config,
    public_names=public_names,
    key_table=key_table,
    table_sizes=lambda config: {"i": config.n_layer},
    export_name=lambda name: name if name.startswith("lm_head") else "hyena.backbone." + name,
    tokenizer=lambda config: ("character", {}),
    causal=True,
    token_flops=_token_flops,
    longest=lambda config: config.l_max,
    for_task=lambda config, length, classes: dataclasses.replace(config, l_max=length),
)
