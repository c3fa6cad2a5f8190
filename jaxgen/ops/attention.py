"""Scaled dot-product attention with padding masks, ALiBi, causal and local windows, in memory below length squared.

The exact softmax in blocks of queries, with probabilities recomputed in the backward pass, follows FlashAttention (arXiv 2205.14135). Three
facts shape this file. On GPU in half precision cuDNN's kernel wins. On CPU, one head at a time stays in cache and is several times faster
than XLA's batched softmax. And XLA's partitioner would gather the batch for such a loop, hence the explicit `shard_map`: each device
attends for its own rows and heads; a sharded length becomes sharded heads by one all-to-all.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxgen.ops.partition import distributed, dividing_axes

# What hides a key. Finite, and large enough to absorb any score: a query that sees nothing gets a mean of values instead of NaN, over the
# keys that either padding or the window hides but not both, and under a causal mask none of those after it, as in transformers.
_HIDDEN = -1e30
_BLOCK, _ACCELERATOR_BLOCK = 128, 1024  # queries at a time
_SHORT = {"cpu": 64}  # up to this length (elsewhere 2,048) all scores at once are as fast
_CUDNN_MAX_HEAD_DIM = 128


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    slopes: jax.Array | None = None,
    causal: bool = False,
    window: int | jax.Array | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale q k^T + bias) v for every head; scores, softmax and their gradients are in float32.

    Args:
      q: queries (batch, queries, heads, head_dim), any float dtype.
      k: keys (batch, keys, heads, head_dim).
      v: values, shaped as k.
      mask: bool (batch, keys), true at keys that may be seen, false at padding.
      bias: added to the scores, broadcastable to (batch, heads, queries, keys); the one option that needs memory for all scores.
      slopes: (heads,) of ALiBi (arXiv 2108.12409): adds -slope |i - j|. Not trained.
      causal: query i sees keys j <= i.
      window: query i sees keys with |i - j| < window; a number or a traced scalar.
      scale: of the scores; None for head_dim ** -0.5.
      dropout: share of the probabilities dropped (with all scores in memory) when a `key` is given.

    Returns:
      (batch, queries, heads, head_dim) in the dtype of v.
    """
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    dropout = 0.0 if key is None else dropout
    options: dict[str, Any] = {"mask": mask, "bias": bias, "slopes": slopes, "causal": causal, "window": window, "scale": scale}
    backend = jax.default_backend()
    if bias is not None or dropout or k.shape[1] <= _SHORT.get(backend, 0):
        weights = attention_weights(q, k, **options)
        if dropout and key is not None:
            weights = jnp.where(jax.random.bernoulli(key, 1.0 - dropout, weights.shape), weights / (1.0 - dropout), 0)
        return weighted_values(weights, v)
    if backend == "gpu" and v.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= _CUDNN_MAX_HEAD_DIM:
        kernel = functools.partial(_cudnn, causal=causal, scale=scale)
    elif backend == "cpu" or k.shape[1] > 2048:
        kernel = functools.partial(_blocked, causal=causal, scale=scale)
    else:
        return weighted_values(attention_weights(q, k, **options), v)
    return _on_own_shards(kernel, q, k, v, mask, slopes, None if window is None else jnp.asarray(window))


def attention_weights(
    q: jax.Array,
    k: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    slopes: jax.Array | None = None,
    causal: bool = False,
    window: int | jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """The probabilities themselves, float32 (batch, heads, queries, keys); arguments as for `attention`."""
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])
    if slopes is not None:
        scores = scores + _alibi(jax.lax.stop_gradient(slopes)[:, None, None], i, j)
    keep = None if mask is None else _keep(mask[:, None, None], i, j, causal)
    return jax.nn.softmax(_hide(scores, _reach(i, j, causal, window), keep), axis=-1)


def weighted_values(weights: jax.Array, v: jax.Array) -> jax.Array:
    """(batch, heads, queries, keys) and (batch, keys, heads, head_dim) -> (batch, queries, heads, head_dim)."""
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)


def _alibi(slopes: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    return -slopes.astype(jnp.float32) * jnp.abs(i - j).astype(jnp.float32)


def _reach(i: jax.Array, j: jax.Array, causal: bool, window: int | jax.Array | None) -> jax.Array | None:
    """Which keys j are within reach of the queries i; None for all."""
    near = None if window is None else jnp.abs(i - j) < window
    if not causal:
        return near
    return j <= i if near is None else near & (j <= i)


def _keep(mask: jax.Array, i: jax.Array, j: jax.Array, causal: bool) -> jax.Array:
    """Which keys a padding mask leaves; with `causal` it hides what comes after the query a second time."""
    return mask & (j <= i) if causal else mask


def _hide(scores: jax.Array, reach: jax.Array | None, keep: jax.Array | None) -> jax.Array:
    """Scores without keys out of reach, nor padding."""
    if reach is not None:
        scores = jnp.where(reach, scores, _HIDDEN)
    return scores if keep is None else scores + jnp.where(keep, 0, _HIDDEN).astype(scores.dtype)


def _on_own_shards(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, slopes: Any, window: Any) -> jax.Array:
    """`kernel(q, k, v, mask, slopes, window)` on each device's rows and heads of the mesh in force."""
    if not distributed():
        return kernel(q, k, v, mask, slopes, window)
    rows, n_heads = dividing_axes(("data", "fsdp"), q.shape[0]), q.shape[2]
    heads = dividing_axes(("tensor", "sequence"), n_heads) or dividing_axes(("tensor",), n_heads) or dividing_axes(("sequence",), n_heads)
    whole = P(rows, None, heads)
    specs = (whole, whole, whole, P(rows), P(heads), P())
    # The loop's carry starts as a constant, which check_vma would refuse.
    return jax.shard_map(kernel, in_specs=specs, out_specs=whole, check_vma=False)(q, k, v, mask, slopes, window)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, slopes: Any, window: Any, *, causal: bool, scale: float) -> jax.Array:
    """cuDNN's kernel; whatever it does not know of goes into its bias."""
    bias = None
    if mask is not None or slopes is not None or window is not None:
        i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])
        bias = jnp.zeros((1, 1, q.shape[1], k.shape[1])) if slopes is None else _alibi(slopes[:, None, None], i, j)[None]
        bias = _hide(bias, _reach(i, j, False, window), None if mask is None else mask[:, None, None])
        bias = jax.lax.stop_gradient(bias).astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, bias, scale=scale, is_causal=causal, implementation="cudnn")


# Blocks of queries --------------------------------------------------------------------------------------------------------------


def _blocked(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, slopes: Any, window: Any, *, causal: bool, scale: float) -> jax.Array:
    """(batch, length, heads, head_dim) as rows of one head each, in float32, queries padded to whole blocks."""
    b, n_queries, h, d = q.shape
    n_blocks = -(-n_queries // (_BLOCK if jax.default_backend() == "cpu" else _ACCELERATOR_BLOCK))
    block = -(-n_queries // n_blocks)
    q_rows, k_rows, v_rows = (jnp.swapaxes(x, 1, 2).reshape(b * h, x.shape[1], d).astype(jnp.float32) for x in (q, k, v))
    q_rows = jnp.pad(q_rows * scale, ((0, 0), (0, -n_queries % block), (0, 0)))
    per_row: dict[str, jax.Array] = {} if mask is None else {"keep": jnp.repeat(mask, h, axis=0)}
    if slopes is not None:
        per_row["slope"] = jnp.tile(slopes, b)
    o_rows: Any = _rows_attention(block, causal, q_rows, k_rows, v_rows, per_row, window)
    return jnp.swapaxes(o_rows[:, :n_queries].reshape(b, h, n_queries, d), 1, 2).astype(v.dtype)


def _map_rows(function: Any, rows: Any) -> Any:
    return jax.lax.map(function, rows) if jax.default_backend() == "cpu" else jax.vmap(function)(rows)


def _block_scores(
    q: jax.Array, kt: jax.Array, start: jax.Array, row: dict[str, jax.Array], window: Any, causal: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Scores (block, keys) of the queries from `start` on, and which keys are within their reach (None for all)."""
    scores = q @ kt
    i, j = start + jnp.arange(q.shape[0])[:, None], jnp.arange(kt.shape[1])
    if "slope" in row:
        scores = scores + _alibi(row["slope"], i, j)
    reach, keep = _reach(i, j, causal, window), row.get("keep")
    return _hide(scores, reach, None if keep is None else _keep(keep, i, j, causal)), reach


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rows_attention(block: int, causal: bool, q: jax.Array, k: jax.Array, v: jax.Array, per_row: Any, window: Any) -> jax.Array:
    """Attention of (rows, length, head_dim) in float32; the gradients of `per_row` and `window` are zero."""
    return _rows_forward(block, causal, q, k, v, per_row, window)[0]


def _rows_forward(block: int, causal: bool, q: jax.Array, k: jax.Array, v: jax.Array, per_row: Any, window: Any) -> tuple[jax.Array, Any]:
    starts = jnp.arange(0, q.shape[1], block)

    def one_row(inputs: Any) -> Any:
        q, k, v, row = inputs
        kt = k.T

        def one_block(inputs: Any) -> Any:
            q, start = inputs
            scores, _ = _block_scores(q, kt, start, row, window, causal)
            top = scores.max(-1)
            weights = jnp.exp(scores - top[:, None])
            total = weights.sum(-1)
            return (weights @ v) / total[:, None], top, total

        o, top, total = jax.lax.map(one_block, (_in_blocks(q, block), starts))
        return o.reshape(q.shape), top, total

    o, top, total = _map_rows(one_row, (q, k, v, per_row))
    return o, (q, k, v, per_row, window, o, top, total)


def _rows_backward(block: int, causal: bool, saved: Any, do: jax.Array) -> tuple[Any, ...]:
    q, k, v, per_row, window, o, top, total = saved
    starts = jnp.arange(0, q.shape[1], block)

    def one_row(inputs: Any) -> Any:
        q, k, v, row, o, top, total, do = inputs
        kt, vt = k.T, v.T

        def one_block(carry: Any, inputs: Any) -> Any:
            dkt, dvt = carry
            q, do, o, top, total, start = inputs
            scores, reach = _block_scores(q, kt, start, row, window, causal)
            p = jnp.exp(scores - top[:, None]) / total[:, None]
            ds = p * (do @ vt - (do * o).sum(-1)[:, None])
            if reach is not None:  # matters where a query sees nothing: what is out of reach has a constant score
                ds = jnp.where(reach, ds, 0)
            return (dkt + q.T @ ds, dvt + do.T @ p), ds @ k

        blocks = (*(_in_blocks(x, block) for x in (q, do, o)), top, total, starts)
        (dkt, dvt), dq = jax.lax.scan(one_block, (jnp.zeros_like(kt), jnp.zeros_like(vt)), blocks)
        return dq.reshape(q.shape), dkt.T, dvt.T

    dq, dk, dv = _map_rows(one_row, (q, k, v, per_row, o, top, total, do))
    return dq, dk, dv, None, None


def _in_blocks(x: jax.Array, block: int) -> jax.Array:
    return x.reshape(-1, block, x.shape[-1])


_rows_attention.defvjp(_rows_forward, _rows_backward)
