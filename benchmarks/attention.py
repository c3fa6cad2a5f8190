"""Part `attention`: a forward pass and a training step of a Nucleotide Transformer v2 (50m) and a DNABERT, against transformers' models.

The peers hold the same weights: BertForMaskedLM, and EsmForMaskedLM with the gated feed-forward network that v2 has and stock ESM lacks put
in. Two of the twelve equal layers, with embedding and language-model head. Logits are compared before anything is timed. A training step
is cross entropy over all tokens, gradients, and AdamW, without dropout.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Contender, Goal, Note, Options, Row, compare, have

GOAL = Goal("ratio", ">=", 2.0)
SHAPES = ((4, 512), (1, 2048))  # (batch, tokens)
LAYERS, TOLERANCE = 2, 1e-3
SMOKE_FIELDS = {"d_model": 32, "n_heads": 2, "d_inner": 48}


def run(options: Options) -> Iterator[Row | Note]:
    if not have("torch") or not have("transformers"):
        yield Note("attention", "torch or transformers is not installed, so there is no peer (make bench installs them)")
        return
    yield Note("attention", f"{LAYERS} of 12 layers; torch peer of NT v2: EsmForMaskedLM with the gated feed-forward network put in")
    for batch, length in ((2, 32),) if options.smoke else SHAPES:
        for name, shape in (("NT v2 50m", "nt_v2"), ("DNABERT 6-mer", "dnabert")):
            tokens = np.random.default_rng(0).integers(5, 4000, (batch, length), np.int32)
            ours, folder_of = jaxgen_model(shape, length, options.smoke)
            with tempfile.TemporaryDirectory() as folder:
                theirs = torch_model(folder_of(folder))
            mine, peers = jax_functions(ours, tokens), torch_functions(theirs, tokens)
            apart = float(np.abs(np.asarray(mine["forward"]()) - peers["forward"]().numpy()).max())
            if not apart < TOLERANCE:
                raise AssertionError(f"{name}: logits differ from those of transformers by {apart:.1e}; nothing to compare")
            yield Note("attention", f"{name}, {length} tokens: logits agree with transformers to {apart:.0e}")
            for what, function in mine.items():
                contenders = [Contender("jaxgen", function), Contender("transformers", peers[what])]
                case = f"{name} {what} B={batch} L={length}"
                yield from compare("attention", case, contenders, options.repeats, goal=GOAL, clock=options.clock)


def jaxgen_model(family_name: str, length: int, smoke: bool) -> tuple[Any, Callable[[str], Path]]:
    """A model with random weights that takes `length` tokens, and what saves it in the public format."""
    from flax import nnx

    import jaxgen
    from jaxgen.models.registry import resolve

    family, config = resolve({"nt_v2": "nt_v2_50m", "dnabert": "dnabert_6mer"}[family_name])
    still = dict.fromkeys(("hidden_dropout", "attention_dropout"), 0.0)
    config = dataclasses.replace(config, n_layer=LAYERS, **still, **(SMOKE_FIELDS if smoke else {}))
    model = family.build(family.for_task(config, length, 0), nnx.Rngs(0))
    return model, lambda folder: jaxgen.export(model, folder)


def jax_functions(model: Any, tokens: np.ndarray) -> dict[str, Callable[[], Any]]:
    """`forward` -> logits, and `training step` -> loss, which keeps the weights that it updates."""
    import jax
    import optax
    from flax import nnx

    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adamw(1e-5)

    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params, rest)(tokens).logits

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, tokens), tokens).mean()

    def step(params: Any, moments: Any, tokens: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, tokens)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, value

    forward, train, ids = jax.jit(logits), jax.jit(step, donate_argnums=(0, 1)), jax.device_put(tokens)
    state = [jax.tree.map(jax.numpy.copy, params), optimizer.init(params)]

    def one_step() -> Any:
        *state[:], value = train(*state, ids)
        return jax.block_until_ready(value)

    return {"forward": lambda: jax.block_until_ready(forward(params, ids)), "training step": one_step}


def torch_model(folder: Path) -> Any:
    """The model of a public checkpoint folder, in transformers."""
    import json

    import transformers
    from safetensors.torch import load_file

    public = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in public.items() if name not in ("auto_map", "torch_dtype", "architectures")}
    if public.get("model_type") == "esm" or "esmfold_config" in public:
        model = transformers.EsmForMaskedLM(transformers.EsmConfig(**config))
        for layer in model.esm.encoder.layer:
            make_gated(layer, config["hidden_size"], config["intermediate_size"])
    else:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**config))
    tensors = load_file(folder / "model.safetensors")
    # No weight of the file, or tied to one.
    free = ("contact_head.", "inv_freq", "position_ids", "predictions.decoder.", "predictions.bias", "lm_head.decoder.bias")
    missing = [name for name in model.load_state_dict(tensors, strict=False).missing_keys if not any(part in name for part in free)]
    if missing:
        raise AssertionError(f"weights of the torch peer that were not filled: {missing}")
    return model.eval()


def make_gated(layer: Any, width: int, inner: int) -> None:
    """Gives an ESM layer the feed-forward network of Nucleotide Transformer v2: silu(gate) * up, one fused matrix, no biases."""
    import torch

    class Gated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(width, 2 * inner, bias=False)

        def forward(self, x: Any) -> Any:
            gate, up = self.dense(x).chunk(2, dim=-1)
            return torch.nn.functional.silu(gate) * up

    layer.intermediate, layer.output.dense = Gated(), torch.nn.Linear(inner, width, bias=False)


def torch_functions(model: Any, tokens: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The same two functions in torch."""
    import torch

    ids = torch.from_numpy(tokens).long()
    mask = torch.ones_like(ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    @torch.no_grad()
    def forward() -> Any:
        return model(input_ids=ids, attention_mask=mask).logits

    def one_step() -> Any:
        optimizer.zero_grad()
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return {"forward": forward, "training step": one_step}
