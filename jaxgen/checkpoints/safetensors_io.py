"""Safetensors files to and from numpy, bfloat16 included."""

import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  numpy knows the name "bfloat16" once this is imported
import numpy as np
import safetensors
import safetensors.numpy

from jaxgen.checkpoints.safe_pickle import located
from jaxgen.errors import InputError


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every tensor of one file.

    Raises:
      InputError: the file is damaged or not a safetensors file.
    """
    with located(path):
        try:
            with safetensors.safe_open(path, "np") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except safetensors.SafetensorError as error:
            raise ValueError(error) from error


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one file, whole or not at all. `metadata` defaults to `{"format": "pt"}`, without which transformers refuses a file.

    Raises:
      InputError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    arrays = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    try:
        safetensors.numpy.save_file(arrays, temporary, dict(metadata or {"format": "pt"}))
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({error}); check the folder and the space left") from error
    finally:
        temporary.unlink(missing_ok=True)
