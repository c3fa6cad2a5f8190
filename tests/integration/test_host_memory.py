"""What the process does with memory that a step has freed."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import numpy as np
from jaxgen.main import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(40 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = pages()
keep_freed_memory()
pages()
print(without, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("platforms", "kept"), [("cpu", True), ("cuda,cpu", False)])
def test_large_blocks_are_faulted_in_once(platforms, kept):
    environment = os.environ | {"JAX_PLATFORMS": platforms}
    shown = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True).stdout
    without, after = map(int, shown.split())
    assert without > 1000
    assert after < 100 if kept else after > 1000
