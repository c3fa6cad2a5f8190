"""Embed the sequences of a table or FASTA: one vector each, as .npy with ids, on any mesh, resumable at any moment."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxgen.data.embeddings import EmbeddingFile, Manifest, read_named_sequences, write_array, write_whole
from jaxgen.data.segments import STRANDS, Encoder, Plan, Segments, Step
from jaxgen.errors import InputError, nearest
from jaxgen.heads.embedder import Embedder
from jaxgen.jobs import training
from jaxgen.jobs.tokenizer import choose_tokenizer
from jaxgen.jobs.training import ModelSpec, model_spec, say, sized_for, with_pretrained
from jaxgen.train.logging import environment, write_json, write_result
from jaxgen.train.loop import params_digest
from jaxgen.train.progress import Progress
from jaxgen.train.sharding import put_batch
from jaxgen.train.state import TrainState, init_state

DTYPES = ("float32", "float16")
Embed = Callable[[Mapping[str, np.ndarray]], jax.Array]


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    folder, e = _folder(config), config.embed
    data = read_named_sequences(config.data.path, e.id_column, config.data.sequence_column, e.duplicates)
    for note in data.notes:
        say(f"note: {note}")
    spec = _model(config)
    tokenizer = choose_tokenizer(config, spec, data.sequences)
    encoder = Encoder(data.sequences, tokenizer, e.special_tokens)
    spec = _enlarged(config, spec, encoder)
    longest = e.max_length or spec.family.longest(spec.config)
    segments = Segments.of(encoder, e.strand, longest, e.too_long, data.ids, config.data.path)
    plan = Plan.of(segments, config.data.buckets if config.model.masked else 1, e.batch_tokens, longest)
    mesh = training.make_mesh(config.mesh)
    graphdef, state = _load(config, spec, mesh)
    embed, width = _compiled(graphdef, state, mesh)

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
    done = file.done(export_digest)
    _meet("the manifest is read")
    main = jax.process_index() == 0
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config.to_dict())
        manifest.write(settings, name, export, finished=False)
        if not done:
            file.create()
    _meet("the file is there")
    say(f"{len(data.ids):,} sequences, {len(plan.buckets)} padded lengths up to {plan.buckets[-1]} on {mesh.size} devices")
    if done:
        say(f"resumed: {done} of {len(plan.shards)} parts are there already")
    file.open()
    rates = _export(config, plan, encoder, embed, _Writer(file, plan, offsets, export_digest, tokenizer.padding_side), mesh, done)
    file.close()
    if not main:
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
    if not config.workdir:
        raise InputError("--workdir=DIR is missing: where should the embeddings go?")
    if "://" in config.workdir:
        raise InputError(
            f"--workdir={config.workdir}: embeddings are written row by row; give a folder of this machine and copy it afterwards"
        )
    if config.embed.dtype not in DTYPES:
        raise InputError(f"embed.dtype={config.embed.dtype!r}{nearest(config.embed.dtype, DTYPES)}")
    if config.embed.pooling == "none" and (len(STRANDS.get(config.embed.strand, ())) > 1 or config.embed.too_long == "chunk"):
        raise InputError("embed.pooling=none keeps every token: it goes with one embed.strand and without embed.too_long=chunk")
    if Path(config.workdir).is_file():
        raise InputError(f"--workdir={config.workdir} is a file; give a folder")
    return Path(config.workdir)


def _model(config: ConfigDict) -> ModelSpec:
    if not config.model.name and not config.init_from:
        raise InputError("no model: give configs/embed.py:MODEL or --config.init_from=WEIGHTS")
    spec = model_spec(config)
    if spec.family.emits != "hidden" or spec.family.inputs != "tokens":
        raise InputError(f"model {spec.family.name!r} has no hidden states of tokens to embed with; choose a language model")
    return spec


def _enlarged(config: ConfigDict, spec: ModelSpec, encoder: Encoder) -> ModelSpec:
    """A model with random weights takes the length of the data, as it does in training."""
    if spec.arrays is not None or config.embed.max_length:
        return spec
    most = max(int(encoder.lengths(turn).max()) for turn in STRANDS.get(config.embed.strand, (0,)))
    return sized_for(config, spec, most) if most > spec.family.longest(spec.config) > 0 else spec


def _load(config: ConfigDict, spec: ModelSpec, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState]:
    """The model, sharded over the mesh, with its weights."""
    e = config.embed

    def build(key: jax.Array) -> nnx.Module:
        backbone = spec.family.build(spec.config, nnx.Rngs(key))
        return Embedder(backbone, layer=e.layer, pooling=e.pooling, masked=config.model.masked)

    graphdef, _, state = init_state(build, (), lambda params: optax.identity(), mesh, config.seed, False)
    return graphdef, state if spec.arrays is None else with_pretrained(state, spec.arrays)


def _compiled(graphdef: nnx.GraphDef, state: TrainState, mesh: Mesh) -> tuple[Embed, int]:
    """(this process's rows of a batch -> embeddings, rows over the mesh; width), compiled once per shape."""

    def apply(params: nnx.State, frozen: nnx.State, model_state: nnx.State, batch: Mapping[str, jax.Array]) -> jax.Array:
        return nnx.merge(graphdef, params, frozen, model_state, copy=True)(batch)

    jitted = jax.jit(apply, out_shardings=NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))

    def embed(batch: Mapping[str, np.ndarray]) -> jax.Array:
        with jax.set_mesh(mesh):
            return jitted(state.params, state.frozen, state.model_state, put_batch(mesh, batch))

    shape = (mesh.shape["data"] * mesh.shape["fsdp"], 8)
    example = {"tokens": jax.ShapeDtypeStruct(shape, np.int32), "mask": jax.ShapeDtypeStruct(shape, bool)}
    with jax.set_mesh(mesh):
        return embed, jax.eval_shape(apply, state.params, state.frozen, state.model_state, example).shape[-1]


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


class _Writer:
    """Adds up the embeddings of this process's sequences, and writes a shard when it is complete."""

    def __init__(self, file: EmbeddingFile, plan: Plan, offsets: np.ndarray, digest: str, padding_side: str):
        self.file, self.plan, self.offsets, self.digest, self.left = file, plan, offsets, digest, padding_side == "left"
        self.shard, self.rows, self.sums = -1, np.zeros(0, np.int64), np.zeros((0, 0), np.float32)

    def add(self, step: Step, output: jax.Array) -> None:
        if step.shard != self.shard:
            self.finish_shard()
            self.shard = step.shard
            self.rows = self.plan.own_rows(step.shard, jax.process_index(), jax.process_count())
            self.sums = np.zeros((len(self.rows), self.file.shape[1]), np.float32)
        segments, real = self.plan.segments, step.segments >= 0
        values, chosen = _local_rows(output)[real], step.segments[real]
        rows = segments.row[chosen]
        if values.ndim == 2:
            np.add.at(self.sums, np.searchsorted(self.rows, rows), values * segments.coefficient[chosen][:, None])
            return
        for value, row, n in zip(values, rows, segments.tokens[chosen]):
            self.file.write(int(self.offsets[row]), value[-n:] if self.left else value[:n])

    def finish_shard(self) -> None:
        if self.shard < 0:
            return
        if len(self.offsets) == self.file.shape[0] + 1:  # one vector per sequence
            for row, value in zip(self.rows.tolist(), self.sums):
                self.file.write(row, value)
        self.file.flush()
        _meet(f"part {self.shard}")
        if jax.process_index() == 0:
            self.file.record(self.shard + 1, self.digest)


def _export(config: ConfigDict, plan: Plan, encoder: Encoder, embed: Embed, writer: _Writer, mesh: Mesh, done: int) -> dict[str, Any]:
    """Every batch from shard `done` on: read ahead by threads, embedded, and written one batch late so that nobody waits."""
    began, processes = time.monotonic(), jax.process_count()
    steps = list(plan.steps(done, mesh.shape["data"] * mesh.shape["fsdp"], jax.process_index(), processes))

    def batch(number: int) -> dict[str, np.ndarray]:
        tokens, mask = encoder.batch(plan.segments, steps[number].segments, steps[number].width)
        return {"tokens": tokens, "mask": mask}

    options = grain.ReadOptions(num_threads=config.data.threads, prefetch_buffer_size=config.data.prefetch if config.data.threads else 0)
    batches = grain.MapDataset.range(len(steps)).map(batch).to_iter_dataset(options)
    progress = Progress(len(steps), is_main_process=jax.process_index() == 0)
    waiting: tuple[int, jax.Array] | None = None
    sequences = positions = 0

    def settle() -> None:
        nonlocal sequences, positions
        if waiting is None:
            return
        number, output = waiting
        writer.add(steps[number], output)
        size, share = steps[number].segments.size * processes, plan.segments.coefficient[steps[number].segments]
        examples = round(float(share[steps[number].segments >= 0].sum()) * processes)
        sequences, positions = sequences + examples, positions + size * steps[number].width
        progress.update(number + 1, examples=examples, tokens=size * steps[number].width)

    for number, arrays in enumerate(batches):
        output = embed(arrays)
        settle()
        waiting = number, output
    settle()
    writer.finish_shard()
    progress.close()
    seconds = time.monotonic() - began
    real = int(plan.segments.tokens[np.isin(plan.segments.row, np.concatenate(plan.shards[done:]))].sum()) if steps else 0
    return {
        "steps": len(steps),
        "examples_per_second": sequences / seconds,
        "tokens_per_second": real / seconds,
        "pad_fraction": 1 - real / positions if positions else 0.0,
        "buckets": list(plan.buckets),
        "wall_seconds": seconds,
    }


def _local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array whose rows are divided over the mesh."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _meet(where: str) -> None:
    """Waits for the other processes of the run."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
