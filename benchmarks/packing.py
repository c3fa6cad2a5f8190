"""Five seeds of a small model: trained together, and one after the other, from the command to the last file (no plots)."""

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from benchmarks.harness import Note, Options, Row
from configs import benchmark
from jaxgen.data.tasks.simulated_promoters import load
from jaxgen.jobs import benchmark as job

MODELS = ("cnn", "hyenadna_smoke")


def run(options: Options) -> Iterator[Row | Note]:
    seeds = (1, 2) if options.smoke else (1, 2, 3, 4, 5)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_task(root / "data/gue/tf_0", 96 if options.smoke else 1600)
        for model in ("cnn_smoke",) if options.smoke else MODELS:
            one, together, apart = (
                _seconds(root, f"{model}_{name}", model, chosen, pack)
                for name, chosen, pack in (("one", seeds[:1], 1), ("together", seeds, len(seeds)), ("apart", seeds, 1))
            )
            case = f"{model}, {len(seeds)} seeds of 1,600 simulated promoters, 3 epochs"
            yield Row("packing", case, together, "s", "one after the other", apart)
            yield Note("packing", f"{model}: {len(seeds)} packed seeds take {together / one:.2f} times one seed ({one:.1f} s); goal < 2.5")


def _write_task(folder: Path, rows: int) -> None:
    """The simulated promoters in the layout of GUE."""
    folder.mkdir(parents=True)
    for split, examples in load().splits.items():
        take = list(examples.sequences)[: rows if split == "train" else rows // 4]
        lines = [f"{sequence.decode()},{label}\n" for sequence, label in zip(take, examples.targets.tolist())]
        (folder / f"{split}.csv").write_text("sequence,label\n" + "".join(lines))


def _seconds(root: Path, name: str, model: str, seeds: tuple[int, ...], pack: int) -> float:
    """Wall time of the benchmark job without baselines and compiled programs of an earlier run."""
    c = benchmark.get_config("")
    c.workdir, c.data.path, c.compile_cache = str(root / name), str(root / "data"), ""
    c.benchmark.update({"models": (model,), "tasks": ("gue/tf_0",), "seeds": seeds, "pack": pack, "kmer": False, "leaks": False})
    c.benchmark.settings = ("*@*:train.epochs=3", "*@*:train.batch_size=32", "*@*:train.report=false")
    jax.clear_caches()
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        job.run(c)
    return time.perf_counter() - began
