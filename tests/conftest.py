"""Eight virtual CPU devices and one compile cache (`.cache/`, kept between runs) for every test."""

import os
from pathlib import Path

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


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small train, dev and test tables."""
    return helpers.write_table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="session")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FASTA of two contigs, 10 kb."""
    return helpers.write_fasta(tmp_path_factory.mktemp("genome") / "g.fa")
