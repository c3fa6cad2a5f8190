"""Part `start`: seconds from the command to the first training step, with an empty and with a filled compile cache."""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Goal, Note, Options, Row

WARM_GOAL = Goal("value", "<", 10.0)
IMPORT_GOAL = Goal("value", "<", 1.0)
LIMIT_SECONDS = 300
ROOT = Path(__file__).resolve().parent.parent


def run(options: Options) -> Iterator[Row | Note]:
    repeats = 1 if options.smoke else max(1, options.repeats // 2)
    imports = [import_seconds() for _ in range(repeats)]
    yield Row("start", "import jaxgen", statistics.median(imports), "s", goal=IMPORT_GOAL, samples=(tuple(imports),))
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(first_step_seconds(options.config, Path(folder), "cold"))
            warm.append(first_step_seconds(options.config, Path(folder), "warm"))
    name = options.config.rsplit("/", 1)[-1]
    yield Row("start", f"{name} to step 1, cold compile cache", statistics.median(cold), "s", samples=(tuple(cold),))
    yield Row("start", f"{name} to step 1, warm compile cache", statistics.median(warm), "s", goal=WARM_GOAL, samples=(tuple(warm),))


def import_seconds() -> float:
    """Seconds that `import jaxgen` takes in a fresh interpreter."""
    script = "import time; since = time.perf_counter(); import jaxgen; print(time.perf_counter() - since)"
    return float(subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def first_step_seconds(config: str, cache: Path, workdir: str) -> float:
    """Seconds until a training run of `config` reports its first step; the run is then ended.

    Raises:
      RuntimeError: the run ended, or took too long, before that.
    """
    command = [sys.executable, "-m", "jaxgen.main", f"--config={config}", f"--workdir={cache / workdir}"]
    environment = os.environ | {"JAXGEN_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    timer = threading.Timer(LIMIT_SECONDS, process.kill)
    timer.start()
    said: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step "):
                return time.perf_counter() - began
            said.append(line.strip())
        raise RuntimeError(f"{' '.join(command)} reported no step; its last line was {said[-1] if said else 'empty'!r}")
    finally:
        timer.cancel()
        process.kill()
        process.wait()
