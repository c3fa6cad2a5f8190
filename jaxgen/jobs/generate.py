"""Continue DNA with a causal language model, from prompts in a table, a FASTA or the config, into a FASTA."""

import functools
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxgen.data.embeddings import read_named_sequences
from jaxgen.data.sequences import Sequences
from jaxgen.data.tables import LETTERS, check_sequences
from jaxgen.errors import InputError
from jaxgen.heads.generation import generate
from jaxgen.jobs import training
from jaxgen.jobs.inference import load
from jaxgen.jobs.tokenizer import choose_tokenizer
from jaxgen.jobs.training import ModelSpec, model_spec, open_workdir, say, sized_for
from jaxgen.tokenizers.base import Tokenizer
from jaxgen.train.logging import environment, write_atomic, write_json, write_result
from jaxgen.train.loop import params_digest
from jaxgen.train.sharding import put_batch

FILE = "generated.fa"
_STEP = 64  # prompts of many lengths are read in one pass up to a multiple of this, so that few programs are compiled
_COLUMNS = 80


class Prompt(NamedTuple):
    """One row: the sequence `name` is continued for the `sample`-th time."""

    name: str
    text: bytes
    sample: int
    ids: np.ndarray


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    g = config.generate
    _check(config)
    if open_workdir(config, FILE):
        return 0
    names, sequences, where = _sequences(config)
    spec = _model(config)
    tokenizer = choose_tokenizer(config, spec, sequences)
    prompts = _prompts(names, sequences, tokenizer, g.samples, where)
    longest = max(len(prompt.ids) for prompt in prompts)
    spec = _sized(config, spec, longest + g.tokens)
    mesh = training.make_mesh(config.mesh)
    graphdef, state = load(config, spec, mesh, _Backbone)
    if not config.init_from:
        say("note: the weights are random; give trained ones with --config.init_from")
    dna = np.zeros(_vocabulary(spec), bool)
    dna[: tokenizer.vocab_size] = tokenizer.bases_per_token() > 0
    options = {"temperature": float(g.temperature), "top_k": min(g.top_k, int(dna.sum()))}

    @functools.partial(jax.jit, static_argnames="shortest")
    def continued(params: Any, batch: dict[str, jax.Array], shortest: int) -> jax.Array:
        model = nnx.merge(graphdef, *params, copy=True).backbone
        key = jax.random.key(config.seed)
        arrays = (batch["tokens"], batch["lengths"])
        return generate(model, *arrays, g.tokens, key, rows=batch["rows"], shortest=shortest, allowed=jnp.asarray(dna), **options)

    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows_at_once = -(-min(g.batch_size, len(prompts)) // devices) * devices
    began, made = time.monotonic(), {}
    say(f"{len(prompts)} continuations of {g.tokens} tokens, {rows_at_once} at a time on {mesh.size} devices")
    for rows, batch, shortest in _batches(prompts, rows_at_once, spec.family.longest(spec.config), g.tokens):
        with jax.set_mesh(mesh):
            tokens = continued((state.params, state.frozen, state.model_state), put_batch(mesh, batch), shortest)
        for row, ids in zip(rows, np.asarray(tokens)):
            start = len(prompts[row].ids)
            made[row] = tokenizer.decode(ids[start : start + g.tokens])
    seconds = time.monotonic() - began
    folder = Path(config.workdir)
    write_json(folder / "config.json", config.to_dict())
    write_atomic(folder / FILE, "".join(_record(prompt, made[row]) for row, prompt in enumerate(prompts)))
    result = {"job": "generate", "model": spec.family.name, "metrics": {}, "seed": config.seed, "params_digest": params_digest(state)}
    result |= {"sequences": len(prompts), "tokens": g.tokens, "tokens_per_second": len(prompts) * g.tokens / seconds}
    write_result(folder, result | {"wall_seconds": seconds} | environment())
    say(f"result: {folder / FILE}")
    return 0


class _Backbone(nnx.Module):
    """What `load` fills with weights."""

    def __init__(self, backbone: nnx.Module):
        self.backbone = backbone


def _check(config: ConfigDict) -> None:
    if jax.process_count() > 1:
        raise InputError("generate runs in one process; its rows are divided over the devices of that process")


def _sequences(config: ConfigDict) -> tuple[list[str], Sequences, str]:
    """(names, sequences, where they come from)."""
    e, d = config.embed, config.data
    if d.path and config.generate.prompt:
        raise InputError("generate.prompt and data.path are both set; give prompts in one of them")
    if config.generate.prompt:
        return ["prompt"], Sequences.from_list([_prompt(config.generate.prompt)]), "generate.prompt"
    if not d.path:
        raise InputError("no prompt: set --config.generate.prompt=ACGT, or data.path to a table or FASTA")
    data = read_named_sequences(d.path, e.id_column, d.sequence_column, e.duplicates)
    for note in data.notes:
        say(f"note: {note}")
    return data.ids, data.sequences, d.path


def _prompt(text: str) -> bytes:
    """`generate.prompt` as sequences of files are read."""
    for place, letter in enumerate(text, 1):
        if letter.upper() not in LETTERS.decode():
            raise InputError(f"generate.prompt={text!r}: letter {place}, {letter!r}, is not a base; give some of {LETTERS.decode()}")
    (sequence,), _, _, notes = check_sequences("generate.prompt", [text], [1], "prompt", [])
    for note in notes:
        say(f"note: {note}")
    return sequence


def _model(config: ConfigDict) -> ModelSpec:
    spec = model_spec(config)
    if not spec.family.causal:
        raise InputError(f"model {spec.family.name!r} is not causal and cannot continue a sequence; choose mamba, hyenadna or gpt_neo")
    return spec


def _prompts(names: list[str], sequences: Sequences, tokenizer: Tokenizer, samples: int, where: str) -> list[Prompt]:
    prompts = []
    for name, text in zip(names, sequences):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if not len(ids):
            raise InputError(f"{where}: the prompt {name!r} has no token; give one base or more")
        prompts += [Prompt(name, text, sample, ids) for sample in range(samples)]
    return prompts


def _sized(config: ConfigDict, spec: ModelSpec, length: int) -> ModelSpec:
    """`spec` for prompt and continuation; only a model with random weights takes any length."""
    longest = spec.family.longest(spec.config)
    if spec.arrays is None:
        return sized_for(config, spec, max(length, longest))
    spec = sized_for(config, spec, length)
    if 0 < longest < length:
        raise InputError(f"{length} tokens of prompt and continuation, but {spec.family.name} takes {longest}; set generate.tokens lower")
    return spec


def _vocabulary(spec: ModelSpec) -> int:
    """Logits of the model."""
    return getattr(spec.config, "n_tokens", spec.config.vocab_size)


def _batches(prompts: list[Prompt], size: int, longest: int, new: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], int]]:
    """(numbers of the prompts, `size` rows of arrays, the last ones filler, tokens read in one pass), by length."""
    lengths = np.array([len(prompt.ids) for prompt in prompts])
    one_length = lengths.min() == lengths.max()
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        filled = np.append(rows, np.full(size - len(rows), rows[-1]))
        shortest, width = int(lengths[rows].min()), int(lengths[rows].max())
        if not one_length:
            shortest = max(1, shortest // _STEP * _STEP)
            width = -(-width // _STEP) * _STEP
            width = min(width, longest - new) if longest else width
        tokens = np.zeros((size, width), np.int32)
        for out, row in zip(tokens, filled):
            out[: lengths[row]] = prompts[row].ids
        yield rows, {"tokens": tokens, "lengths": lengths[filled].astype(np.int32), "rows": filled.astype(np.int32)}, shortest


def _record(prompt: Prompt, continuation: str) -> str:
    """One FASTA record: the prompt and what follows it."""
    sequence = prompt.text.decode() + continuation
    header = f">{prompt.name}_{prompt.sample + 1} prompt={len(prompt.text)} length={len(sequence)}"
    return "\n".join([header, *textwrap.wrap(sequence, _COLUMNS)]) + "\n"
