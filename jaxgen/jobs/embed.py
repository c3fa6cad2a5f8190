"""Embed the sequences of a table or FASTA: one vector each, as .npy with ids, on any mesh, resumable at any moment."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxgen.data.embeddings import EmbeddingFile, Manifest, read_named_sequences, write_array, write_whole
from jaxgen.data.segments import STRANDS, Encoder, Plan, Segments, Step
from jaxgen.errors import InputError, nearest
from jaxgen.heads.embedder import Embedder
from jaxgen.jobs import training
from jaxgen.jobs.inference import RowWriter, compiled, enlarged, load, run_plan, start_rows
from jaxgen.jobs.tokenizer import choose_tokenizer
from jaxgen.jobs.training import ModelSpec, claim_workdir, model_spec, say
from jaxgen.train.logging import environment, write_result
from jaxgen.train.loop import params_digest

DTYPES = ("float32", "float16")


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    folder, e = _folder(config), config.embed
    data = read_named_sequences(config.data.path, e.id_column, config.data.sequence_column, e.duplicates)
    for note in data.notes:
        say(f"note: {note}")
    spec = _model(config)
    tokenizer = choose_tokenizer(config, spec, data.sequences)
    encoder = Encoder(data.sequences, tokenizer, e.special_tokens)
    spec = enlarged(config, spec, encoder)
    longest = e.max_length or spec.family.longest(spec.config)
    segments = Segments.of(encoder, e.strand, longest, e.too_long, data.ids, config.data.path)
    plan = Plan.of(segments, config.data.buckets if config.model.masked else 1, e.batch_tokens, longest)
    mesh = training.make_mesh(config.mesh)
    graphdef, state = load(config, spec, mesh, lambda m: Embedder(m, layer=e.layer, pooling=e.pooling, masked=config.model.masked))
    embed, shape = compiled(graphdef, state, mesh)
    example = (mesh.shape["data"] * mesh.shape["fsdp"], 8)
    width = shape({"tokens": jax.ShapeDtypeStruct(example, np.int32), "mask": jax.ShapeDtypeStruct(example, bool)}).shape[-1]

    files = _files(config, spec)
    export = {"data": Path(config.data.path).name, "data_sha256": data.digest(), "rows": len(data.ids), "width": width, "files": files}
    digest = params_digest(state)
    vocabulary = json.dumps([tokenizer.name, tokenizer.vocabulary()], sort_keys=True)
    settings = _settings(config, spec, digest, hashlib.sha256(vocabulary.encode()).hexdigest())
    manifest = Manifest(folder)
    name = e.name or spec.family.name
    if manifest.check(settings, name, export):
        say(f"{folder / files['embeddings']}: finished already")
        return 0
    if not config.init_from:
        say("note: the weights are random; give trained ones with --config.init_from")

    offsets = np.concatenate([[0], np.cumsum(segments.tokens)]) if e.pooling == "none" else np.arange(len(data.ids) + 1)
    file = EmbeddingFile(folder / files["embeddings"], (int(offsets[-1]), width), e.dtype)
    order = json.dumps([settings, export, plan.buckets, e.batch_tokens], sort_keys=True)
    export_digest = hashlib.sha256(order.encode()).hexdigest()
    done = start_rows(config, file, export_digest, lambda: manifest.write(settings, name, export, finished=False))
    say(f"{len(data.ids):,} sequences, {len(plan.buckets)} padded lengths up to {plan.buckets[-1]} on {mesh.size} devices")
    if done:
        say(f"resumed: {done} of {len(plan.shards)} parts are there already")

    def batch(step: Step) -> dict[str, np.ndarray]:
        tokens, mask = encoder.batch(segments, step.segments, step.width)
        return {"tokens": tokens, "mask": mask}

    writer = RowWriter(file, plan, offsets, export_digest, tokenizer.padding_side == "left")
    rates = run_plan(config, plan, batch, embed, writer, mesh, done, segments.coefficient)
    file.close()
    if jax.process_index() != 0:
        return 0
    bad = np.unique(np.searchsorted(offsets, np.flatnonzero(file.non_finite()), side="right") - 1)
    write_array(folder / files["ids"], np.array(data.ids, dtype=np.str_))
    write_whole(folder / files["index"], "\n".join(data.ids).encode())
    if e.pooling == "none":
        write_array(folder / files["offsets"], offsets)
    file.finish()
    manifest.write(settings, name, export, finished=True)
    found = {"non_finite": [data.ids[row] for row in bad]}
    found |= {kind: segments.cut * (e.too_long == choice) for kind, choice in (("truncated", "truncate"), ("chunked", "chunk"))}
    if found["non_finite"]:
        say(f"warning: {len(bad)} rows hold NaN or infinity and are kept: {', '.join(found['non_finite'][:5])}{' ...' * (len(bad) > 5)}")
    if segments.cut:
        say(f"note: {segments.cut} sequences are longer than {longest} tokens (embed.too_long={e.too_long})")
    result = {"job": "embed", "model": spec.family.name, "metrics": {}, "seed": config.seed, "params_digest": digest} | export | rates
    write_result(folder, result | found | environment())
    say(f"result: {folder / 'result.json'}  ({folder / files['embeddings']})")
    return 0


def _folder(config: ConfigDict) -> Path:
    """The workdir, and the choices that need no data."""
    claim_workdir(config)  # what else binds embeddings is in their manifest: one folder may hold several exports
    if "://" in config.workdir:
        raise InputError(
            f"--workdir={config.workdir}: embeddings are written row by row; give a folder of this machine and copy it afterwards"
        )
    if config.embed.dtype not in DTYPES:
        raise InputError(f"embed.dtype={config.embed.dtype!r}{nearest(config.embed.dtype, DTYPES)}")
    if config.embed.pooling == "none" and (len(STRANDS.get(config.embed.strand, ())) > 1 or config.embed.too_long == "chunk"):
        raise InputError("embed.pooling=none keeps every token: it goes with one embed.strand and without embed.too_long=chunk")
    return Path(config.workdir)


def _model(config: ConfigDict) -> ModelSpec:
    spec = model_spec(config)
    if spec.family.emits != "hidden" or spec.family.inputs != "tokens":
        raise InputError(f"model {spec.family.name!r} has no hidden states of tokens to embed with; choose a language model")
    return spec


def _settings(config: ConfigDict, spec: ModelSpec, digest: str, vocabulary: str) -> dict[str, Any]:
    """What all embeddings of one folder share."""
    e, fields = config.embed, dataclasses.asdict(spec.config)
    shape = json.dumps({name: value for name, value in fields.items() if name not in ("dtype", "remat")}, sort_keys=True, default=str)
    return {
        "model": spec.family.name,
        "fingerprint": hashlib.sha256(f"{digest} {shape}".encode()).hexdigest(),
        "tokenizer": f"{spec.family.tokenizer(spec.config)[0]} {vocabulary[:16]}",
        "precision": config.precision,
        "masked": config.model.masked,
        **{name: e[name] for name in ("layer", "pooling", "strand", "dtype", "special_tokens", "max_length", "too_long")},
    }


def _files(config: ConfigDict, spec: ModelSpec) -> dict[str, str]:
    """Kind -> file name in the workdir."""
    e, names = config.embed, {}
    for kind, template in e.files.items():
        if kind == "offsets" and e.pooling != "none":
            continue
        try:
            names[kind] = template.format(name=e.name or spec.family.name, pooling=e.pooling, strand=e.strand, layer=e.layer)
        except (KeyError, IndexError, ValueError):
            raise InputError(f"embed.files.{kind}={template!r}: may hold {{name}}, {{pooling}}, {{strand}} and {{layer}}") from None
        if not names[kind] or Path(names[kind]).name != names[kind]:
            raise InputError(f"embed.files.{kind}: {names[kind]!r} is not the name of a file in the workdir")
    if len(set(names.values())) < len(names):
        raise InputError(f"embed.files: two of {', '.join(names)} have the same name")
    return names
