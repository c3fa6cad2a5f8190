"""Caduceus: bi-directional Mamba of DNA, reverse-complement equivariant (PS) or by averaging (Ph) (Schiff et al. 2024, arXiv 2403.03234).

Source of the numerics: kuleshov-group/caduceus `modeling_caduceus.py` and `modeling_rcps.py`, with the channel swap of its fused blocks,
which all published weights were trained with. PS activations have 2 d_model channels, [forward half | reverse-complement half].
Array names end in their axes: b batch, l length, d features of one half, c all channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgen.checkpoints.key_table import Row, strip_prefix
from jaxgen.checkpoints.mamba_format import projection_rows, ssm_rows
from jaxgen.layers.core import Buffer, Embedding, LayerNorm, RMSNorm, normal
from jaxgen.layers.mamba import BackboneConfig, BiMixer, Block, Mixer, read_mixer, write_mixer
from jaxgen.layers.output import Output
from jaxgen.layers.stack import make_stack, scan_stack
from jaxgen.models.family import Family

# Of the Caduceus tokenizer: A <-> T, C <-> G, all else its own complement.
COMPLEMENT = (0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11)
PLANT_COMPLEMENT = (0, 1, 2, 6, 5, 4, 3)


@dataclasses.dataclass(frozen=True)
class Config(BackboneConfig):
    """Shape and numerics. `dt_rank` 0 means ceil(d_model / 16); `complement_map` is continued by identity up to the padded vocabulary."""

    # Reverse-complement parameter sharing: all that tells PS from Ph.
    rcps: ClassVar[bool]

    complement_map: tuple[int, ...] = COMPLEMENT
    bidirectional: bool = True
    bidirectional_strategy: str = "add"
    bidirectional_weight_tie: bool = True
    # For PS not only a kernel: the fused block swaps the two halves.
    fused_add_norm: bool = True

    def __post_init__(self) -> None:
        complement = tuple(int(i) for i in self.complement_map)
        object.__setattr__(self, "complement_map", complement + tuple(range(len(complement), self.n_tokens)))


class PhConfig(Config):
    rcps = False


class PsConfig(Config):
    rcps = True


def _sizes(config: type[Config]) -> dict[str, Config]:
    return {
        "1k": config(),
        "1k_d118": config(d_model=118),
        "32k": config(n_layer=8),
        "131k": config(n_layer=16, remat="full"),
        "smoke": config(d_model=48, n_layer=2),
    } | (_plant_sizes() if config.rcps else {})


def _plant_sizes() -> dict[str, Config]:
    """PlantCaduceus (Zhai et al. 2025), windows of 512 bases of plant genomes."""
    plant = {"vocab_size": len(PLANT_COMPLEMENT), "complement_map": PLANT_COMPLEMENT, "residual_in_fp32": True}
    widths = {20: 384, 24: 512, 28: 768, 32: 1024}
    return {f"plant_l{n_layer}": PsConfig(d_model=width, n_layer=n_layer, **plant) for n_layer, width in widths.items()}


def _hub(letters: str) -> dict[str, str]:
    owner = f"kuleshov-group/caduceus-{letters}_seqlen-"
    return {
        "1k": owner + "1k_d_model-256_n_layer-4_lr-8e-3",
        "1k_d118": owner + "1k_d_model-118_n_layer-4_lr-8e-3",
        "131k": owner + "131k_d_model-256_n_layer-16",
    } | ({f"plant_l{n}": f"kuleshov-group/PlantCaduceus_l{n}" for n in (20, 24, 28, 32)} if letters == "ps" else {})


def make_norm(config: Config, rngs: nnx.Rngs) -> nnx.Module:
    return (RMSNorm if config.rms_norm else LayerNorm)(config.d_model, rngs, eps=config.norm_epsilon)


def make_mixer(config: Config, rngs: nnx.Rngs) -> nnx.Module:
    if not config.bidirectional:
        return Mixer(config.mixer, rngs, residuals=config.n_layer)
    strategy, tied = config.bidirectional_strategy, config.bidirectional_weight_tie
    return BiMixer(config.mixer, rngs, residuals=config.n_layer, strategy=strategy, tied=tied)


def halves(x_blc: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The forward half and the reverse-complement half with its channels turned back to their natural order."""
    a, b = jnp.split(x_blc, 2, axis=-1)
    return a, jnp.flip(b, -1)


def joined(a_bld: jax.Array, b_bld: jax.Array) -> jax.Array:
    """The inverse of `halves`."""
    return jnp.concatenate([a_bld, jnp.flip(b_bld, -1)], axis=-1)


def strands(hidden_blc: jax.Array) -> jax.Array:
    """(batch, length, 2 d) of a PS model -> (batch, length, d, 2): each strand read along itself."""
    a, b = halves(hidden_blc)
    return jnp.stack([a, jnp.flip(b, 1)], axis=-1)


class EquivariantBlock(nnx.Module):
    """A block whose one mixer and one norm serve both halves: (hidden, residual) -> (mixer output, residual), each of 2 d channels."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.swaps = config.fused_add_norm
        self.mixer, self.norm = make_mixer(config, rngs), make_norm(config, rngs)

    def __call__(self, hidden_blc: jax.Array, residual_blc: jax.Array, mask_bl: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        dtype = hidden_blc.dtype
        residual_blc = residual_blc + hidden_blc.astype(residual_blc.dtype)
        if self.swaps:
            residual_blc = jnp.concatenate(jnp.split(residual_blc, 2, axis=-1)[::-1], axis=-1)
        a, b = halves(residual_blc)
        # Both strands as one batch, the second read backwards.
        rows = jnp.concatenate([self.norm(a, dtype), jnp.flip(self.norm(b, dtype), 1)])
        mask = None if mask_bl is None else jnp.concatenate([mask_bl, jnp.flip(mask_bl, 1)])
        forward, backward = jnp.split(self.mixer(rows, mask), 2)
        return joined(forward, jnp.flip(backward, 1)), residual_blc


class Caduceus(nnx.Module):
    """Token ids (batch, length) -> Output with masked-language-model logits. `hidden` of a PS model has 2 d_model channels."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        self.embedding = Embedding(config.n_tokens, config.d_model, rngs, init=normal(config.initializer_range))

        def block(r: nnx.Rngs) -> nnx.Module:
            return EquivariantBlock(config, r) if config.rcps else Block(make_mixer(config, r), make_norm(config, r))

        self.blocks = make_stack(block, config.n_layer, rngs)
        self.norm = make_norm(config, rngs)
        self.complement = Buffer(jnp.asarray(config.complement_map, jnp.int32)) if config.rcps else None

    def embed(self, tokens: jax.Array) -> jax.Array:
        """(batch, length, d), or both halves for PS."""
        dtype = jnp.dtype(self.config.dtype)
        forward = self.embedding(tokens, dtype)
        return forward if self.complement is None else joined(forward, self.embedding(self.complement[...][tokens], dtype))

    def trace(self, tokens: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, Any, Any]:
        """(embedding, (hidden, residual) after the last block, both of every block with a leading layer axis)."""
        return self._run(tokens, mask, collect=True)

    def _run(self, tokens: jax.Array, mask: jax.Array | None, *, collect: bool) -> tuple[jax.Array, Any, Any]:
        x = self.embed(tokens)
        start = jnp.zeros_like(x, jnp.float32 if self.config.residual_in_fp32 else x.dtype)

        def step(block: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            carry = block(*carry, mask)
            return carry, carry if collect else None

        last, collected = scan_stack(self.blocks, step, (x, start), remat=self.config.remat)
        return x, last, collected

    def _final(self, hidden: jax.Array, residual: jax.Array) -> jax.Array:
        dtype, total = hidden.dtype, hidden + residual
        return self.norm(total, dtype) if self.complement is None else joined(*(self.norm(h, dtype) for h in halves(total)))

    def _logits(self, hidden: jax.Array) -> jax.Array:
        hidden = hidden.astype(jnp.float32)
        if self.complement is None:
            return self.embedding.attend(hidden)
        a, b = halves(hidden)
        return self.embedding.attend(a) + self.embedding.attend(b)[..., self.complement[...]]

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
        hidden_states: bool = False,
    ) -> Output:
        """`mask` (batch, length), true at real tokens, keeps padding out of convolutions and states (the original lets it in: pass None).

        `hidden_states` are those of the public model: what enters each block, without the residual, and with fused blocks `hidden`.
        """
        del train, key  # no dropout
        x, (hidden, residual), collected = self._run(tokens, mask, collect=hidden_states)
        final = self._final(hidden, residual)
        states = None
        if hidden_states:
            ends = [final[None]] if self.config.fused_add_norm else []
            states = jnp.concatenate([x[None], collected[0][:-1], *ends])
        return Output(final, self._logits(final), states)


# Public checkpoints -------------------------------------------------------------------------------------------------------------


def public_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The published layouts under one set of names: without the prefixes of Lightning and of the task model."""
    if any(name.startswith("model.") for name in tensors):  # Lightning keeps metrics beside the model
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(("model.", "decoder."))}
    prefixes = ("model.caduceus.backbone.", "caduceus.backbone.", "model.backbone.", "backbone.", "model.")
    return strip_prefix(tensors, prefixes)


def key_table(config: Config) -> tuple[Row, ...]:
    """Names of `public_names` <-> ours; `{i}` is the layer."""
    mixer, norm = "layers.{i}.mixer." + "submodule." * config.rcps, "submodule." * (config.rcps and not config.fused_add_norm)
    fwd, rev = mixer + "mamba_fwd.", mixer + "mamba_rev."
    bias, conv_bias, tied = config.bias, config.conv_bias, config.bidirectional_weight_tie
    if not config.bidirectional:
        rows = [*projection_rows(fwd, "blocks.mixer.", bias), *ssm_rows(fwd, "blocks.mixer.ssm.", conv_bias)]
    else:
        rows = projection_rows(fwd, "blocks.mixer.fwd.", bias, rev if tied else "")
        rows += ssm_rows(fwd, "blocks.mixer.fwd.ssm.", conv_bias)
        rows += ssm_rows(rev, "blocks.mixer.rev." if tied else "blocks.mixer.rev.ssm.", conv_bias)
        rows += [] if tied else projection_rows(rev, "blocks.mixer.rev.", bias)
    for theirs, ours in (("weight", "scale"), ("bias", "bias"))[: 1 if config.rms_norm else 2]:
        rows.append(Row(f"layers.{{i}}.norm.{norm}{theirs}", f"blocks.norm.{ours}"))
        rows.append(Row(f"norm_f.{norm}{theirs}", f"norm.{ours}"))
    words = "embeddings.word_embeddings."
    if config.rcps:
        rows.append(Row(words + "embedding.weight", "embedding.table", also_public=("lm_head.lm_head.weight",)))
        rows.append(Row(words + "complement_map", "complement", also_public=("lm_head.complement_map",)))
    else:
        rows.append(Row(words + "weight", "embedding.table", also_public=("lm_head.weight",)))
    return tuple(rows)


def _read_config(kind: type[Config], public: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Config:
    """The hub's config.json, or the model_config.json of a pre-training run, which has it under `config`."""
    public = public.get("config", public)
    # A config saved again has its map in the order of strings; the tensor of a PS checkpoint is authoritative.
    stored = tensors.get("embeddings.word_embeddings.complement_map")
    listed = sorted((int(i), int(j)) for i, j in (public.get("complement_map") or {}).items())
    complement = stored.tolist() if stored is not None else [j for _, j in listed] or COMPLEMENT
    return kind(
        n_layer=public["n_layer"],
        vocab_size=public["vocab_size"],
        pad_vocab_size_multiple=public.get("pad_vocab_size_multiple", 8),
        complement_map=tuple(complement),
        bidirectional=bool(public.get("bidirectional", True)),  # the study's YAML says the string "true,"
        bidirectional_strategy=public.get("bidirectional_strategy") or "add",
        bidirectional_weight_tie=bool(public.get("bidirectional_weight_tie", True)),
        rms_norm=public.get("rms_norm", True),
        fused_add_norm=public.get("fused_add_norm", True),
        norm_epsilon=public.get("norm_epsilon", 1e-5),
        residual_in_fp32=public.get("residual_in_fp32", True),
        initializer_range=(public.get("initializer_cfg") or {}).get("initializer_range", 0.02),
        **dataclasses.asdict(read_mixer(public["d_model"], public.get("ssm_cfg"))),
    )


def _write_config(config: Config) -> dict[str, Any]:
    remote = {"AutoConfig": "configuration_caduceus.CaduceusConfig", "AutoModel": "modeling_caduceus.Caduceus"}
    return {
        "model_type": "caduceus",
        "architectures": ["CaduceusForMaskedLM"],
        "auto_map": remote | {"AutoModelForMaskedLM": "modeling_caduceus.CaduceusForMaskedLM"},
        "d_model": config.d_model,
        "n_layer": config.n_layer,
        "vocab_size": config.n_tokens,
        "ssm_cfg": write_mixer(config.mixer),
        "rms_norm": config.rms_norm,
        "fused_add_norm": config.fused_add_norm,
        "residual_in_fp32": config.residual_in_fp32,
        "pad_vocab_size_multiple": config.pad_vocab_size_multiple,
        "norm_epsilon": config.norm_epsilon,
        "initializer_cfg": {
            "initializer_range": config.initializer_range,
            "rescale_prenorm_residual": True,
            "n_residuals_per_layer": 1,
        },
        "bidirectional": config.bidirectional,
        "bidirectional_strategy": config.bidirectional_strategy,
        "bidirectional_weight_tie": config.bidirectional_weight_tie,
        "rcps": config.rcps,
        "complement_map": {str(i): j for i, j in enumerate(config.complement_map)},
        "torch_dtype": "float32",
    }


def _token_flops(config: Config, length: int) -> float:
    """Multiply-adds counted twice; 9 operations per state element of a scan (state-spaces/mamba issue 110)."""
    del length
    m = config.mixer
    d, e, n = m.d_model, m.d_inner, m.d_state
    directions = 2 if config.bidirectional else 1
    once = config.bidirectional_weight_tie and config.bidirectional_strategy == "add"
    projections = 2 * 3 * d * e * (1 if once else directions)
    ssm = 2 * (e * (m.rank + 2 * n) + m.rank * e + m.d_conv * e) + 9 * e * n
    return (2 if config.rcps else 1) * (config.n_layer * (projections + directions * ssm) + 2 * d * config.n_tokens)


def _family(name: str, config: type[Config], hub: str) -> Family:
    def recognises(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bool:
        found = public.get("model_type") == "caduceus" or any(".mamba_fwd." in name for name in tensors)
        return found and bool(public.get("config", public).get("rcps", False)) == config.rcps

    return Family(
        name=name,
        config=config,
        build=Caduceus,
        sizes=_sizes(config),
        default_size="1k",
        hub=_hub(hub),
        recognises=recognises,
        read_config=lambda public, tensors, weights_file: _read_config(config, public, tensors),
        write_config=_write_config,
        public_names=public_names,
        key_table=key_table,
        table_sizes=lambda config: {"i": config.n_layer},
        export_name=lambda name: "caduceus.backbone." + name,
        tokenizer=lambda config: ("plantcaduceus" if config.n_tokens == 8 else "caduceus", {}),
        token_flops=_token_flops,
        strands=strands if config.rcps else None,
    )


PH, PS = _family("caduceus_ph", PhConfig, "ph"), _family("caduceus_ps", PsConfig, "ps")
