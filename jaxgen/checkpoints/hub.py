"""Checkpoint folders by path or by Hugging Face Hub id."""

import os
import re
from pathlib import Path

from jaxgen.checkpoints.readers import find_weights
from jaxgen.errors import InputError, short

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BESIDE = ["*.json", "*.txt", "*.model"]  # configs and tokenizers
_FIRST = ["*.safetensors"]
_ELSE = ["*.bin", "*.ckpt", "*.pt", "*.pth", "*.msgpack", "*.npz", "*.joblib", "*_METADATA", "*ocdbt*", "d/*", "*/d/*"]


def resolve(path_or_hub_id: str | os.PathLike, revision: str | None = None) -> Path:
    """The folder of a checkpoint: a local one as it is, else a snapshot of the Hub repository `owner/name`, cached under HF_HOME.

    Safetensors are preferred; other formats are downloaded only where there are none. With HF_HUB_OFFLINE=1 the cache alone is used.

    Raises:
      InputError: no such folder, or the repository cannot be had.
    """
    return local(path_or_hub_id) or _snapshot(str(path_or_hub_id), revision)


def local(path_or_hub_id: str | os.PathLike) -> Path | None:
    """The local folder of a checkpoint; None for a Hub id.

    Raises:
      InputError: neither of them.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_hub_id)
    if path.exists():
        raise InputError(f"{name}: is a file; give the folder that holds the weights and their config.json")
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"{name}: no such folder (and not a Hub id, which reads owner/name)")
    return None


def _snapshot(name: str, revision: str | None) -> Path:
    import huggingface_hub  # slow to import, and needed here only

    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_BESIDE + _FIRST))
        if not _has_weights(folder):
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_BESIDE + _ELSE))
    except Exception as error:  # network, HTTP and Hub errors have no common base
        raise InputError(
            f"{name}: no such folder, and not to be had from the Hugging Face Hub ({short(error)}); "
            "give a local folder, or an HF_HOME whose cache holds it"
        ) from error
    return folder


def _has_weights(folder: Path) -> bool:
    try:
        return find_weights(folder).exists()
    except InputError:
        return False
