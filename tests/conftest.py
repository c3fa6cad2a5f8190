"""Eight virtual CPU devices and one compile cache (`.cache/`, kept between runs) for every test."""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import helpers
import pytest

# Before anything imports JAX.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAXGEN_CACHE"] = str(helpers.CACHE / "jaxgen")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(helpers.CACHE / "jaxgen" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file() -> Iterator[None]:
    """Compiled programs of a test file go when it is done: thousands of them in one process reach the kernel's limit of memory maps."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small train, dev and test tables."""
    return helpers.write_table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="session")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FASTA of two contigs, 10 kb."""
    return helpers.write_fasta(tmp_path_factory.mktemp("genome") / "g.fa")


class Ran(NamedTuple):
    """How a command ended; `error` is its one line about wrong input."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        (line,) = (line for line in self.err.splitlines() if line.startswith("error:"))
        return line


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """`python -m jaxgen.main ARGUMENTS` without the start of a process: `run_here(arguments, devices=1)`, on the first of the 8 devices."""

    def run(arguments: Sequence[object], devices: int = 1) -> Ran:
        import jax

        from jaxgen.jobs import training
        from jaxgen.main import entry
        from jaxgen.train.sharding import make_mesh

        monkeypatch.setattr(training, "make_mesh", lambda sizes: make_mesh(sizes, jax.devices()[:devices]))
        monkeypatch.chdir(helpers.ROOT)
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # the front door replaces it
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run
