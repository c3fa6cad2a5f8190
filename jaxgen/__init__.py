"""jaxgen: DNA in, a trained and honestly evaluated model out, in pure JAX.

`jaxgen.load(path_or_hub_id)` and `jaxgen.export(model, directory)` are the library's front door; everything else is run
with `python -m jaxgen.main --config=FILE`. Importing the package imports nothing heavy.
"""

from importlib import import_module, metadata
from typing import Any

_LAZY = {"load": "jaxgen.models.pretrained", "export": "jaxgen.models.pretrained", "Pretrained": "jaxgen.models.pretrained"}

__all__ = ["Pretrained", "__version__", "export", "load"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("jaxgen")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'jaxgen' has no attribute {name!r}")
