"""The weights of an earlier run, read from its workdir as numpy arrays."""

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from jaxgen.checkpoints.safe_pickle import located
from jaxgen.errors import InputError

MODEL_FILE = "model.json"  # {"family": name, "config": fields}: what it takes to read the checkpoints without the run's config file


def is_workdir(folder: epath.PathLike) -> bool:
    """Whether a run of jaxgen left its model here."""
    return (epath.Path(folder) / MODEL_FILE).exists()


def read_model(folder: epath.PathLike) -> dict[str, Any]:
    """{"family": name, "config": fields}.

    Raises:
      InputError: something else, with the file.
    """
    file = epath.Path(folder) / MODEL_FILE
    with located(file):
        model = json.loads(file.read_text())
        if not isinstance(model, dict) or not isinstance(model.get("family"), str) or not isinstance(model.get("config"), dict):
            raise InputError("is not the model of a run; family and config are expected")
    return model


def read_arrays(folder: epath.PathLike) -> dict[str, np.ndarray]:
    """Parameters and model state of the best step, by the names they have in the module.

    Raises:
      InputError: no finished checkpoint.
    """
    import orbax.checkpoint as ocp

    directory = epath.Path(folder) / "checkpoints"
    steps = sorted(int(p.name.removeprefix("step_")) for p in directory.glob("step_*") if p.name.removeprefix("step_").isdigit())
    if not steps:
        raise InputError(f"{folder}: holds no finished checkpoint yet; let the run save one first")
    run = json.loads((directory / f"step_{steps[-1]}" / "run" / "metadata").read_text())
    best = run["selection"]["best_step"]
    step = best if best in steps else steps[-1]
    checkpointer, item = ocp.PyTreeCheckpointer(), _absolute(directory / f"step_{step}" / "state")
    with _without_warnings():
        # As numpy arrays, because the devices that saved them may not be here.
        arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in checkpointer.metadata(item).item_metadata.tree}
        saved = checkpointer.restore(item, restore_args=arguments)
    use_ema = any(name.startswith("ema.") for name in saved)
    groups = ("ema" if use_ema else "params", "frozen", "model_state")
    arrays = {}
    for name, array in saved.items():
        group, _, rest = name.partition(".")
        if group in groups:
            arrays[rest] = np.asarray(array)
    return arrays


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Orbax looks for files that runs do not write, and warns of their absence."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _absolute(path: epath.Path) -> epath.Path:
    return path if "://" in str(path) else path.resolve()
