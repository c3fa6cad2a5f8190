"""What tests share: where goldens and real data lie, tiny inputs, and jobs run as a user runs them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
REAL_DATA = ROOT.parent / "shared" / "data"
_named = os.environ.get("JAXGEN_GOLDENS")
GOLDEN_ROOTS = [Path(p) for p in _named.split(":")] if _named else [ROOT / "tests" / "goldens", ROOT.parent / "shared" / "goldens"]

BASES = np.frombuffer(b"ACGT", np.uint8)


def real(name: str) -> Path:
    """A file or folder of real data; skips the test where it is absent."""
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"real data {name} is not here")
    return path


def golden_case(family: str, case: str) -> Path:
    """The folder of one golden case; skips the test where no root has it."""
    path = next((root / family / case for root in GOLDEN_ROOTS if (root / family / case).is_dir()), None)
    if path is None:
        pytest.skip(f"golden {family}/{case} is under none of the roots")
    return path


# Tiny inputs --------------------------------------------------------------------------------------------------------------------


def write_table(folder: Path, rows: Mapping[str, int] | None = None, length: int = 96, seed: int = 0) -> Path:
    """train / dev / test CSVs of `length` bases or a few less; class 1 is rich in A and T."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (rows or {"train": 120, "dev": 36, "test": 36}).items():
        lines = ["sequence,label"]
        for _ in range(n):
            label, size = int(rng.integers(2)), int(rng.integers(length - 12, length + 1))
            bases = rng.choice(BASES, size, p=[0.4, 0.1, 0.1, 0.4] if label else [0.25] * 4)
            lines.append(f"{bases.tobytes().decode()},{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_fasta(path: Path, contigs: Mapping[str, int] | None = None, seed: int = 0) -> Path:
    """Random contigs of the given lengths."""
    rng = np.random.default_rng(seed)
    records = ((name, rng.choice(BASES, n).tobytes().decode()) for name, n in (contigs or {"c1": 6000, "c2": 4000}).items())
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records))
    return path


def flags(**fields: Any) -> list[str]:
    """`train__steps=3` -> `--config.train.steps=3`."""
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]


_RUN: dict[str, Any] = {"train__epochs": 0, "train__steps": 12, "train__batch_size": 16, "train__eval_every": 4, "train__log_every": 1}
_RUN |= {"train__eval_batch_size": 16, "train__report": "false"}
_HYENA = {f"model__config__{name}": value for name, value in {"d_model": 16, "d_inner": 32, "filter_order": 8, "n_layer": 2}.items()}


def cnn(table: Path, **fields: Any) -> list[str]:
    """Arguments of a tiny CNN (batch norm) on a table."""
    return [
        "--config=configs/finetune.py:cnn_smoke,table",
        *flags(**_RUN | {"data__path": table, "model__config__embedding_dim": 8} | fields),
    ]


def hyenadna(table: Path, **fields: Any) -> list[str]:
    """Arguments of a tiny HyenaDNA (dropout, random reverse complements) on a table."""
    return [
        "--config=configs/finetune.py:hyenadna_smoke,table",
        *flags(**_RUN | _HYENA | {"data__path": table, "data__rc_aug": "true"} | fields),
    ]


def finetune(model: str, table: Path, **fields: Any) -> list[str]:
    """Arguments of a few steps of any model on a table; an empty name takes that of `init_from`."""
    named = flags(**{} if model else {"model__name": ""})
    return [f"--config=configs/finetune.py:{model},table", *flags(**_RUN | {"data__path": table} | fields), *named]


def pretrain(fasta: Path, **fields: Any) -> list[str]:
    """Arguments of a tiny HyenaDNA language model on a FASTA."""
    return [
        "--config=configs/pretrain.py:hyenadna_smoke",
        *flags(**_RUN | _HYENA | {"data__fasta": fasta, "data__max_length": 64} | fields),
    ]


class Jitted:
    """A token model whose calls are compiled once per shape; called eagerly, its scan would be compiled at every call."""

    def __init__(self, module: Any):
        import jax

        def forward(tokens, mask, key, hidden_states, attentions):
            return module(tokens, mask=mask, key=key, hidden_states=hidden_states, attentions=attentions)

        self.module, self._forward = module, jax.jit(forward, static_argnums=(3, 4))

    def __call__(self, tokens: Any, *, mask: Any = None, key: Any = None, hidden_states: bool = False, attentions: bool = False) -> Any:
        return self._forward(tokens, mask, key, hidden_states, attentions)


# Jobs in processes of their own -------------------------------------------------------------------------------------------------


class Finished(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


def environment(devices: int = 1, **extra: str) -> dict[str, str]:
    """Of a child: CPU devices, and the caches of the suite (compiled programs, byte code)."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "XLA_FLAGS")}
    env |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPYCACHEPREFIX": str(CACHE / "pycache")}
    return env | {"PYTHONPATH": str(ROOT)} | extra


def start_python(arguments: Sequence[object], devices: int = 1, **env: str) -> subprocess.Popen[str]:
    """A Python of its own in the repository, with its output piped."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(devices, **env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> Finished:
    """Waits for the end; a process that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"still running after {timeout} s:\n{out[-2000:]}\n{err[-4000:]}")
    return Finished(process.returncode, out, err)


def start_job(arguments: Sequence[object], devices: int = 1, **env: str) -> subprocess.Popen[str]:
    """`python -m jaxgen.main ARGUMENTS`, in the background."""
    return start_python(["-m", "jaxgen.main", *arguments], devices, **env)


def run_job(arguments: Sequence[object], devices: int = 1, timeout: float = 240, **env: str) -> Finished:
    """`python -m jaxgen.main ARGUMENTS` -> (exit code, stdout, stderr)."""
    return finish(start_job(arguments, devices, **env), timeout)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], timeout: float = 120) -> bool:
    """True as soon as `condition()` holds; False when the process ended first."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    process.kill()
    pytest.fail(f"nothing happened for {timeout} s: {process.communicate()[1][-3000:]}")


def outcome(workdir: Any) -> dict[str, Any]:
    """What must not depend on how often a run was interrupted: parameters, metrics and the whole log but its clock."""
    from etils import epath

    folder = epath.Path(workdir)
    result = json.loads((folder / "result.json").read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = {name: result[name] for name in ("params_digest", "metrics", "best_step", "steps", "nan_steps")}
    return kept | {"log": [{name: value for name, value in record.items() if name != "time"} for record in records]}


def losses(workdir: Path) -> dict[tuple[str, int], float]:
    """(split, step) -> loss of a run's log."""
    return {(record["split"], record["step"]): record["loss"] for record in outcome(workdir)["log"]}
