"""What the jobs share that run a model over the sequences of a file: its weights on the mesh, and rows written as they are done."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxgen.checkpoints import workdir as workdirs
from jaxgen.data.embeddings import EmbeddingFile
from jaxgen.data.segments import STRANDS, Encoder, Plan, Step
from jaxgen.errors import InputError
from jaxgen.heads.decoder import SequenceHead
from jaxgen.heads.predictor import SequencePredictor
from jaxgen.jobs.tokenizer import choose_tokenizer
from jaxgen.jobs.training import ModelSpec, model_spec, say, sized_for, with_pretrained
from jaxgen.layers.variables import named_arrays, with_arrays
from jaxgen.tokenizers import Tokenizer
from jaxgen.train.logging import write_json
from jaxgen.train.progress import Progress
from jaxgen.train.sharding import put_batch
from jaxgen.train.state import TrainState, init_state

Batch = Mapping[str, np.ndarray]
RECORD_EVERY = 8  # batches of `run_in_order` after which its rows are safe on the disk: a part


def enlarged(config: ConfigDict, spec: ModelSpec, encoder: Encoder) -> ModelSpec:
    """A model with random weights takes the length of the data, as it does in training."""
    if spec.arrays is not None or config.embed.max_length:
        return spec
    most = max(int(encoder.lengths(turn).max()) for turn in STRANDS.get(config.embed.strand, (0,)))
    return sized_for(config, spec, most) if most > spec.family.longest(spec.config) > 0 else spec


def variant_model(config: ConfigDict) -> tuple[ModelSpec, Tokenizer]:
    """The model of a job that reads the alleles of variants, and its tokenizer.

    Raises:
      InputError: no model, or one without hidden states of tokens.
    """
    spec = model_spec(config)
    if spec.family.emits != "hidden" or spec.family.inputs != "tokens":
        raise InputError(f"model {spec.family.name!r} reads no tokens or has no hidden states; choose a language model")
    tokenizer = choose_tokenizer(config, spec)
    if spec.arrays is None:
        say("note: the weights are random; give trained ones with --config.init_from")
    return spec, tokenizer


def load(config: ConfigDict, spec: ModelSpec, mesh: Mesh, wrap: Callable[[nnx.Module], nnx.Module]) -> tuple[nnx.GraphDef, TrainState]:
    """The model, wrapped (as its field `backbone`) and sharded over the mesh, with its weights."""

    def build(key: jax.Array) -> nnx.Module:
        return wrap(spec.family.build(spec.config, nnx.Rngs(key)))

    graphdef, _, state = init_state(build, (), lambda params: optax.identity(), mesh, config.seed, False)
    return graphdef, state if spec.arrays is None else with_pretrained(state, spec.arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class TunedHead:
    """The pooled head that fine-tuning put on a backbone: its arrays, by their names in the head, and its pooling."""

    arrays: Mapping[str, np.ndarray]
    pooling: str

    @property
    def outputs(self) -> int:
        return self.arrays["linear.kernel"].shape[1]

    def around(self, backbone: nnx.Module, spec: ModelSpec, masked: bool) -> SequencePredictor:
        """Predictions of the backbone through a head of this shape, whose weights `place` brings."""
        decoder = SequenceHead(spec.config.d_model, self.outputs, nnx.Rngs(0), pooling=self.pooling)
        return SequencePredictor(backbone, decoder, masked=masked, strands=spec.family.strands)

    def place(self, state: TrainState, under: str = "head.head.") -> TrainState:
        """The state with the weights of the head, whose names begin with `under`: in a module that holds `around(...)` as its field `head`,
        and "head." in `around(...)` itself."""
        new = {
            name: jax.device_put(self.arrays[name.removeprefix(under)], old.sharding)
            for name, old in named_arrays(state.params).items()
            if name.startswith(under)
        }
        return dataclasses.replace(state, params=with_arrays(state.params, new))


def tuned_head(config: ConfigDict, spec: ModelSpec) -> TunedHead | None:
    """The pooled head of the fine-tuned workdir `init_from`; None for a language model or a model that ends in its own head."""
    if not config.init_from or not workdirs.is_workdir(spec.folder):
        return None
    arrays = {name.removeprefix("head."): x for name, x in workdirs.read_arrays(spec.folder).items() if name.startswith("head.")}
    if not arrays:
        return None
    return TunedHead(arrays, json.loads((epath.Path(spec.folder) / "config.json").read_text())["head"]["pooling"])


def compiled(
    graphdef: nnx.GraphDef, state: TrainState, mesh: Mesh, method: Callable[[Any, Any], Any] = lambda module, batch: module(batch)
) -> tuple[Callable[[Batch], Any], Callable[..., Any]]:
    """(this process's rows of a batch -> output of `method`, rows over the mesh, compiled once per shape; the same without weights)."""

    def apply(params: nnx.State, frozen: nnx.State, model_state: nnx.State, batch: Mapping[str, jax.Array]) -> Any:
        return method(nnx.merge(graphdef, params, frozen, model_state, copy=True), batch)

    jitted = jax.jit(apply, out_shardings=NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))

    def run(batch: Batch) -> Any:
        with jax.set_mesh(mesh):
            return jitted(state.params, state.frozen, state.model_state, put_batch(mesh, batch))

    def shape(batch: Mapping[str, jax.ShapeDtypeStruct]) -> Any:
        with jax.set_mesh(mesh):
            return jax.eval_shape(apply, state.params, state.frozen, state.model_state, batch)

    return run, shape


class RowWriter:
    """Adds up what the segments of this process's sequences give, and writes a shard when it is complete.

    Args:
        offsets: int64 (n + 1,): sequence i is the rows offsets[i] ... offsets[i + 1] of the file.
        digest: of everything that the file depends on.
        left: whether the tokenizer pads on the left.
    """

    def __init__(self, file: EmbeddingFile, plan: Plan, offsets: np.ndarray, digest: str, left: bool):
        self.file, self.plan, self.offsets, self.digest, self.left = file, plan, offsets, digest, left
        self.dtype = np.result_type(file.dtype, np.float32)
        self.shard, self.rows, self.sums, self.adds_up = -1, np.zeros(0, np.int64), np.zeros((0, 0), self.dtype), False

    def add(self, step: Step, output: jax.Array) -> None:
        """Takes the output of one batch: one vector, or one for every token, per segment."""
        if step.shard != self.shard:
            self.finish_shard()
            self.shard = step.shard
            self.rows = self.plan.own_rows(step.shard, jax.process_index(), jax.process_count())
            self.sums = np.zeros((len(self.rows), self.file.shape[1]), self.dtype)
        segments, real = self.plan.segments, step.segments >= 0
        values, chosen = local_rows(output)[real], step.segments[real]
        rows = segments.row[chosen]
        self.adds_up = values.ndim == 2  # one vector per sequence, not one per token
        if self.adds_up:
            np.add.at(self.sums, np.searchsorted(self.rows, rows), values * segments.coefficient[chosen][:, None])
            return
        for value, row, n in zip(values, rows, segments.tokens[chosen]):
            self.file.write(int(self.offsets[row]), value[-n:] if self.left else value[:n])

    def finish_shard(self) -> None:
        """Writes the shard, and notes that it is there once all processes have done so."""
        if self.shard < 0:
            return
        if self.adds_up:
            for row, value in zip(self.rows.tolist(), self.sums):
                self.file.write(row, value)
        self.file.flush()
        meet(f"part {self.shard}")
        if jax.process_index() == 0:
            self.file.record(self.shard + 1, self.digest)


def computed(
    config: ConfigDict, n: int, make_batch: Callable[[int], Batch], compute: Callable[[Batch], jax.Array]
) -> Iterator[tuple[int, jax.Array]]:
    """(number, output) of batches 0 ... n - 1: made ahead by threads, handed out when the next one is under way, so that nobody waits."""
    options = grain.ReadOptions(num_threads=config.data.threads, prefetch_buffer_size=config.data.prefetch if config.data.threads else 0)
    return _one_late(grain.MapDataset.range(n).map(make_batch).to_iter_dataset(options), compute)


def _one_late(batches: Iterable[Any], compute: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
    waiting: tuple[int, Any] | None = None
    for number, batch in enumerate(batches):
        output = compute(batch)
        if waiting is not None:
            yield waiting
        waiting = number, output
    if waiting is not None:
        yield waiting


def _read_ahead(batches: Iterator[Any], n: int) -> Iterator[Any]:
    """The first n batches, each read by a thread while the one before is computed."""
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(next, batches)] if n else []
        for number in range(n):
            batch = coming.pop().result()
            if number + 1 < n:
                coming.append(reader.submit(next, batches))
            yield batch


def run_plan(
    config: ConfigDict,
    plan: Plan,
    make_batch: Callable[[Step], Batch],
    compute: Callable[[Batch], jax.Array],
    writer: RowWriter,
    mesh: Mesh,
    done: int,
    shares: np.ndarray,
) -> dict[str, Any]:
    """Every batch from shard `done` on, `computed` and written.

    Args:
        shares: float (segments,), the part of its sequence that a segment is; for the rates.

    Returns:
        rates and sizes for `result.json`.
    """
    began, processes = time.monotonic(), jax.process_count()
    steps = list(plan.steps(done, mesh.shape["data"] * mesh.shape["fsdp"], jax.process_index(), processes))
    progress = Progress(len(steps), is_main_process=jax.process_index() == 0)
    sequences = positions = 0
    for number, output in computed(config, len(steps), lambda number: make_batch(steps[number]), compute):
        writer.add(steps[number], output)
        size, share = steps[number].segments.size * processes, shares[steps[number].segments]
        examples = round(float(share[steps[number].segments >= 0].sum()) * processes)
        sequences, positions = sequences + examples, positions + size * steps[number].width
        progress.update(number + 1, examples=examples, tokens=size * steps[number].width)
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


def run_in_order(
    n: int,
    rows: int,
    batches: Iterator[Any],
    compute: Callable[[Any], Sequence[jax.Array]],
    files: Sequence[EmbeddingFile],
    done: int,
    digest: str,
    tokens: int,
) -> dict[str, float]:
    """Rows in the order of the input, from part `done` on: one batch is read while another is computed and a third is written.

    Args:
        n: rows of the input.
        rows: of a batch, over all processes.
        batches: what this process reads for its share of every batch from row `first_row(done, rows)` on; the last one is filled up.
        compute: batch -> arrays with rows over the mesh, one for each of `files`.
        files: opened by `start_rows`.
        digest: of everything that the files depend on, `rows` included.
        tokens: positions of a batch over all processes, for the rate.

    Returns:
        rates for `result.json`.
    """
    main, began = jax.process_index() == 0, time.monotonic()
    starts = range(first_row(done, rows), n, rows)
    each = rows // jax.process_count()
    progress = Progress(len(starts), is_main_process=main)

    for number, outputs in _one_late(_read_ahead(batches, len(starts)), compute):
        start = starts[number]
        first = start + jax.process_index() * each
        for file, output in zip(files, outputs):
            values = local_rows(output)
            if first < n:
                file.write(first, values[: n - first])
        progress.update(number + 1, examples=min(rows, n - start), tokens=tokens)
        if (number + 1) % RECORD_EVERY == 0 or number + 1 == len(starts):
            for file in files:
                file.flush()
            meet(f"part {number}")
            if main:
                for file in files:
                    file.record(done + -(-(number + 1) // RECORD_EVERY), digest)

    progress.close()
    seconds = time.monotonic() - began
    return {"examples_per_second": max(n - starts.start, 0) / max(seconds, 1e-9), "wall_seconds": seconds}


def first_row(done: int, rows: int) -> int:
    """Where `run_in_order` goes on after so many parts of batches of `rows`."""
    return done * rows * RECORD_EVERY


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array whose rows are divided over the mesh."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def start_rows(config: ConfigDict, file: EmbeddingFile, digest: str, prepare: Callable[[], None] = lambda: None) -> int:
    """Opens the file for the rows of all processes, a new one or that of an interrupted run with the same `digest`.

    Args:
      prepare: what the main process does before there is a file.

    Returns:
      parts that are on the disk already.
    """
    done = file.done(digest)
    meet("progress is read")
    if jax.process_index() == 0:
        folder = Path(config.workdir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config.to_dict())
        prepare()
        if not done:
            file.create()
    meet("the file is there")
    file.open()
    return done


def meet(where: str) -> None:
    """Waits for the other processes of the run."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
