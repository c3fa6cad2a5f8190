"""Cost against length: `python -m benchmarks.long_range --out=runs/long_range.json [--models=mamba_smoke,...] [--lengths=1024,...]`.

Every (model, mode, length) is measured in a process of its own, one sequence at a time: the median of `--repeats` calls after the first,
and the peak memory of the process beyond what it held before the first call (on accelerators: the device's peak). Training is the
trainer's own step (cross entropy at every token, AdamW, every block recomputed in the backward pass); several devices share the
sequence. A length at which a process dies or takes longer than --limit seconds is shown as such, and longer ones are left out. A Markdown
table goes to stdout.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import machine

MODELS = ("mamba_smoke", "caduceus_ps_smoke", "hyenadna_smoke")
LENGTHS = tuple(1 << power for power in range(10, 21, 2))
MODES = ("forward", "training")


@dataclasses.dataclass(frozen=True)
class Measured:
    """`seconds` per call of one sequence, `peak_bytes` of the calls; `failed` says why there are none."""

    model: str
    mode: str
    length: int
    parameters: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    failed: str = ""


def measure(name: str, mode: str, length: int, repeats: int) -> Measured:
    """In this process, which should do nothing else before or after."""
    import jax
    import numpy as np
    import optax
    from flax import nnx

    from jaxgen.heads.predictor import LanguageModel
    from jaxgen.layers.variables import named_arrays
    from jaxgen.models.family import override
    from jaxgen.models.registry import resolve
    from jaxgen.train import objectives, optim
    from jaxgen.train.sharding import make_mesh, put_batch
    from jaxgen.train.state import Program, init_state, make_train_step

    family, size = resolve(name)
    config = override(family.for_task(size, length, 0), {"remat": "full"})
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "sequence": -1})
    fields = optim.OptimizerConfig.of({"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0})

    def build(key: jax.Array) -> nnx.Module:
        return LanguageModel(family.build(config, nnx.Rngs(key)))

    def make_optimizer(params: nnx.State) -> optax.GradientTransformation:
        return optim.make_optimizer(fields, params, lambda step: 1e-3)

    graphdef, optimizer, state = init_state(build, (), make_optimizer, mesh, 0, False)
    program = Program(graphdef, objectives.token_cross_entropy(ignore_id=4), optimizer, mesh, 1, 0.0)
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(7, 11, (1, length)).astype(np.int32) for name in ("tokens", "targets")}
    batch = put_batch(mesh, rows | {"weight": np.ones(1, np.float32)})
    parameters = sum(x.size for x in named_arrays(state.params).values())
    with jax.set_mesh(mesh):
        if mode == "training":
            step = jax.jit(make_train_step(program), donate_argnums=0).lower(state, batch).compile()
        else:

            def forward(params: nnx.State) -> jax.Array:
                return program.apply(params, state.frozen, state.model_state, batch, train=False, key=None)[0].sum()

            step = jax.jit(forward).lower(state.params).compile()
        before, seconds = _peak_bytes(), []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            if mode == "training":
                state, _ = jax.block_until_ready(step(state, batch))
            else:
                jax.block_until_ready(step(state.params))
            seconds.append(time.perf_counter() - began)
    return Measured(name, mode, length, parameters, statistics.median(seconds[1:]), max(_peak_bytes() - before, 0))


def _peak_bytes() -> int:
    import jax

    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_apart(name: str, mode: str, length: int, repeats: int, limit: float) -> Measured:
    """`measure` in a process of its own."""
    flags = [f"--one={name},{mode},{length}", f"--repeats={repeats}"]
    try:
        done = subprocess.run([sys.executable, "-m", "benchmarks.long_range", *flags], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return Measured(name, mode, length, failed=f"over {limit:g} s")
    if done.returncode:
        why = next((line for line in reversed(done.stderr.splitlines()) if "Error" in line), "killed" if done.returncode < 0 else "failed")
        return Measured(name, mode, length, failed=f"exit {done.returncode}: {why}"[:200])
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def table(results: Sequence[Measured]) -> str:
    """Markdown: one row per length, tokens per second and peak MiB of every model and mode."""
    columns = list(dict.fromkeys((r.model, r.mode) for r in results))
    cells = {(r.model, r.mode, r.length): r for r in results}
    lines = ["| L | " + " | ".join(f"{model} {mode}: tokens/s | MiB" for model, mode in columns) + " |"]
    lines.append("|---" * (1 + 2 * len(columns)) + "|")
    for length in sorted({r.length for r in results}):
        row = [f"{length:,}"]
        for column in columns:
            r = cells.get((*column, length))
            if r is None or r.failed:
                row += [r.failed if r else "", ""]
            else:
                row += [f"{r.length / r.seconds:,.0f}", f"{r.peak_bytes / 2**20:,.0f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_range", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one measurement may take, compilation included")
    parser.add_argument("--out", type=Path, help="JSON with every number and the machine")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)  # MODEL,MODE,LENGTH: a single measurement, as JSON
    flags = parser.parse_args(argv)
    if flags.one:
        name, mode, length = flags.one.split(",")
        print(json.dumps(dataclasses.asdict(measure(name, mode, int(length), flags.repeats))))
        return 0
    results: list[Measured] = []
    for name in flags.models.split(","):
        for mode in flags.modes.split(","):
            for length in sorted(map(int, flags.lengths.split(","))):
                found = measure_apart(name, mode, length, flags.repeats, flags.limit)
                results.append(found)
                said = found.failed or f"{length / found.seconds:,.0f} tokens/s, {found.peak_bytes / 2**20:,.0f} MiB"
                print(f"{name} {mode} {length:,}: {said}", file=sys.stderr, flush=True)
                if found.failed:
                    break
    print(table(results))
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = flags.out.with_name(flags.out.name + ".tmp")
        temporary.write_text(json.dumps({"machine": machine(), "results": [dataclasses.asdict(r) for r in results]}, indent=1) + "\n")
        os.replace(temporary, flags.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
