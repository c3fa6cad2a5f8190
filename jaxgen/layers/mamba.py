"""The Mamba mixer, one direction or both (Gu and Dao 2023, arXiv 2312.00752; Schiff et al. 2024, arXiv 2403.03234).

Source of the numerics: state-spaces/mamba v1.2.0 `modules/mamba_simple.py` and kuleshov-group/caduceus `modeling_caduceus.py` (BiMamba).
Array names end in their axes: b batch, l length, d model features, e inner features, n state.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgen.errors import InputError, nearest
from jaxgen.layers.core import CausalDepthwiseConv, Initializer, Linear, ones, padded_size, param, uniform_fan_in
from jaxgen.ops.selective_scan import selective_scan, selective_scan_step

STRATEGIES = ("add", "ew_multiply")


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """Shape and initialisation of a mixer; the names are those of the public `ssm_cfg`. `dt_rank` 0 means ceil(d_model / 16).

    `scan` is the `implementation` of `selective_scan`, which changes speed and memory only and is in no file.
    """

    d_model: int
    d_state: int = 16
    d_conv: int = 4
    expand: float = 2
    dt_rank: int = 0
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_init: str = "random"
    dt_scale: float = 1.0
    dt_init_floor: float = 1e-4
    conv_bias: bool = True
    bias: bool = False
    scan: str = "auto"

    @property
    def d_inner(self) -> int:
        return int(self.expand * self.d_model)

    @property
    def rank(self) -> int:
        return self.dt_rank or math.ceil(self.d_model / 16)


@dataclasses.dataclass(frozen=True)
class BackboneConfig(MixerConfig):
    """What Mamba and Caduceus share besides the mixer: shape and numerics."""

    d_model: int = 256
    n_layer: int = 4
    vocab_size: int = 12
    pad_vocab_size_multiple: int = 8
    rms_norm: bool = True
    norm_epsilon: float = 1e-5
    residual_in_fp32: bool = False
    initializer_range: float = 0.02
    dtype: str = "float32"
    remat: str = "none"

    @property
    def n_tokens(self) -> int:
        """Rows of the embedding: the vocabulary padded to a multiple."""
        return padded_size(self.vocab_size, self.pad_vocab_size_multiple)

    @property
    def mixer(self) -> MixerConfig:
        return MixerConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(MixerConfig)})


def _dt_bias(config: MixerConfig) -> Initializer:
    """Inverse softplus of time steps drawn log-uniformly between dt_min and dt_max."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, dtype, low, high)), config.dt_init_floor)
        return dt + jnp.log(-jnp.expm1(-dt))

    return init


def _log_count(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """log(1 ... n) in every channel."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)


def _dt_kernel(config: MixerConfig) -> Initializer:
    bound = config.rank**-0.5 * config.dt_scale
    if config.dt_init == "constant":
        return nnx.initializers.constant(bound)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class SelectiveSSM(nnx.Module):
    """Short convolution, then the selective scan with the time steps and matrices that its output chooses; everything between the
    projections: (batch, length, 2 d_inner), [input, gate] -> (batch, length, d_inner)."""

    def __init__(self, config: MixerConfig, rngs: nnx.Rngs):
        self.config = config
        e, n, rank = config.d_inner, config.d_state, config.rank
        self.conv = CausalDepthwiseConv(e, config.d_conv, rngs, use_bias=config.conv_bias)
        self.x_proj = Linear(e, rank + 2 * n, rngs, axes=("mlp", None), use_bias=False)
        self.dt_proj = Linear(rank, e, rngs, axes=(None, "mlp"), init=_dt_kernel(config), bias_init=_dt_bias(config))
        self.A_log = param(rngs, _log_count, (e, n), ("mlp", None), decay=False)
        self.D = param(rngs, ones, (e,), ("mlp",), decay=False)

    def _select(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array, jax.Array]:
        """(delta before bias and softplus, its bias, A, B, C) of inputs (..., d_inner)."""
        rank, n = self.config.rank, self.config.d_state
        low, B, C = jnp.split(self.x_proj(x), (rank, rank + n), axis=-1)
        kernel, bias = self.dt_proj.folded()
        delta = low @ kernel.astype(low.dtype)  # the bias is added inside the scan, in float32
        return delta, bias, -jnp.exp(self.A_log[...]), B, C

    def __call__(self, xz_ble: jax.Array, mask_bl: jax.Array | None = None, *, reverse: bool = False) -> tuple[jax.Array, jax.Array]:
        """(output, last state (batch, d_inner, d_state)); in `reverse` from the last position to the first.

        Padding, where `mask` is false, enters neither convolution nor state.
        """
        x, z = jnp.split(xz_ble, 2, axis=-1)
        keep = (lambda h: h) if mask_bl is None else (lambda h: h * mask_bl[..., None].astype(h.dtype))
        u = keep(jax.nn.silu(self.conv(keep(x), reverse=reverse)))
        delta, bias, A, B, C = self._select(u)
        options = {"delta_softplus": True, "reverse": reverse, "implementation": self.config.scan}
        return selective_scan(u, delta, A, B, C, self.D[...], z, bias, **options)

    def step(self, xz_be: jax.Array, window_bwe: jax.Array, state_ben: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One position: (output, the last d_conv inputs (batch, d_conv, d_inner), state)."""
        x, z = jnp.split(xz_be, 2, axis=-1)
        window_bwe = jnp.concatenate([window_bwe[:, 1:], x[:, None]], axis=1)
        u = jax.nn.silu(self.conv(window_bwe)[:, -1])
        delta, bias, A, B, C = self._select(u)
        y, state_ben = selective_scan_step(state_ben, u, delta, A, B, C, self.D[...], z, bias, delta_softplus=True)
        return y, window_bwe, state_ben


class Mixer(nnx.Module):
    """Projections around a SelectiveSSM: (batch, length, d_model) -> the same. Causal.

    `residuals` is the number of residual additions in the model, by whose square root the output projection is scaled down.
    """

    def __init__(self, config: MixerConfig, rngs: nnx.Rngs, *, residuals: int = 1):
        self.config = config
        d, e = config.d_model, config.d_inner
        self.in_proj = Linear(d, 2 * e, rngs, use_bias=config.bias)
        self.ssm = SelectiveSSM(config, rngs)
        scaled = uniform_fan_in(e * residuals)  # kaiming uniform, divided by sqrt(residuals)
        self.out_proj = Linear(e, d, rngs, axes=("mlp", "embed"), use_bias=config.bias, init=scaled)

    def __call__(self, x_bld: jax.Array, mask_bl: jax.Array | None = None) -> jax.Array:
        return self.out_proj(self.ssm(self.in_proj(x_bld), mask_bl)[0])

    def prefill(self, x_bld: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(output, window (batch, d_conv, d_inner), state), to go on from with `step`."""
        xz = self.in_proj(x_bld)
        y, state = self.ssm(xz)
        width = self.config.d_conv
        window = jnp.pad(xz[..., : self.config.d_inner], ((0, 0), (width, 0), (0, 0)))[:, -width:]
        return self.out_proj(y), window, state

    def step(self, x_bd: jax.Array, window_bwe: jax.Array, state_ben: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One position after `prefill` or another step."""
        y, window_bwe, state_ben = self.ssm.step(self.in_proj(x_bd), window_bwe, state_ben)
        return self.out_proj(y), window_bwe, state_ben


class BiMixer(nnx.Module):
    """A mixer over the sequence and one over its reverse, summed or multiplied. Tied, the second has the projections of the first."""

    def __init__(self, config: MixerConfig, rngs: nnx.Rngs, *, residuals: int = 1, strategy: str = "add", tied: bool = True):
        if strategy not in STRATEGIES:
            raise InputError(f"bidirectional_strategy={strategy!r}{nearest(strategy, STRATEGIES)}")
        self.strategy, self.tied = strategy, tied
        self.fwd = Mixer(config, rngs, residuals=residuals)
        self.rev = SelectiveSSM(config, rngs) if tied else Mixer(config, rngs, residuals=residuals)

    def __call__(self, x_bld: jax.Array, mask_bl: jax.Array | None = None) -> jax.Array:
        fwd, rev, once = self.fwd, self.rev, self.tied and self.strategy == "add" and self.fwd.out_proj.bias is None
        xz = fwd.in_proj(x_bld)
        y = fwd.ssm(xz, mask_bl)[0]
        ssm_rev, xz_rev = (rev.ssm, rev.in_proj(x_bld)) if isinstance(rev, Mixer) else (rev, xz)
        y_rev = ssm_rev(xz_rev, mask_bl, reverse=True)[0]
        if once:
            return fwd.out_proj(y + y_rev)
        y, y_rev = fwd.out_proj(y), (fwd if self.tied else rev).out_proj(y_rev)
        return y + y_rev if self.strategy == "add" else y * y_rev


def read_mixer(d_model: int, ssm_cfg: dict | None) -> MixerConfig:
    """The mixer of a public `ssm_cfg`."""
    fields = {field.name: field.type for field in dataclasses.fields(MixerConfig)} | {"dt_rank": object}
    known = {name: value for name, value in (ssm_cfg or {}).items() if name in fields and name != "d_model"}
    known["dt_rank"] = 0 if known.get("dt_rank", "auto") == "auto" else int(known["dt_rank"])
    return MixerConfig(d_model=d_model, **known)


def write_mixer(config: MixerConfig) -> dict:
    """The public `ssm_cfg` of a mixer."""
    fields = dataclasses.asdict(config)
    del fields["d_model"], fields["scan"]
    return fields | {"dt_rank": config.dt_rank or "auto", "use_fast_path": True}


class Block(nnx.Module):
    """Pre-norm block with the addition moved in front: (hidden, residual) -> (mixer output, residual before it)."""

    def __init__(self, mixer: nnx.Module, norm: nnx.Module):
        self.mixer, self.norm = mixer, norm

    def __call__(self, hidden_bld: jax.Array, residual_bld: jax.Array, mask_bl: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        residual_bld = residual_bld + hidden_bld.astype(residual_bld.dtype)
        return self.mixer(self.norm(residual_bld, hidden_bld.dtype), mask_bl), residual_bld
