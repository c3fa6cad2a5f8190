"""What `model.adapter` means for a run: which parameters exist besides the model's own, and which are trained."""

import dataclasses
import tempfile
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from jaxgen.errors import InputError
from jaxgen.heads import adapters
from jaxgen.heads.adapters import Adapter, Layout
from jaxgen.heads.peft_format import save_adapter
from jaxgen.layers.variables import named_arrays
from jaxgen.models.family import Family
from jaxgen.train.logging import write_atomic
from jaxgen.train.loop import to_host
from jaxgen.train.state import TrainState

ADAPTER_FOLDER = "adapter"  # in the workdir


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Full fine-tuning, a probe (the head alone), or an adapter with the head.

    Attributes:
      adapter: None for full fine-tuning and probes.
      freeze: regular expressions of parameters that are not trained.
    """

    adapter: Adapter | None
    layout: Layout
    freeze: tuple[str, ...]

    def adapt(self, backbone: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """The backbone with its adapter, if any."""
        return backbone if self.adapter is None else adapters.adapt(backbone, self.adapter, self.layout, rngs)

    def record(self) -> dict[str, Any]:
        """What model.json says besides the model: how the adapter of a checkpoint is merged."""
        return {} if self.adapter is None else {"adapter": {"owners": adapters.owners(self.adapter, self.layout)}}

    def save(self, state: TrainState, workdir: str, base: str) -> epath.Path | None:
        """Write the adapter in peft's format below the workdir; all processes take part. Returns the folder, None without adapter."""
        if self.adapter is None:
            return None
        groups = (state.inference_params(), state.frozen, state.model_state)
        arrays: dict[str, np.ndarray] = {
            name.removeprefix("backbone."): to_host(x) for group in groups for name, x in named_arrays(group).items()
        }
        folder = epath.Path(workdir) / ADAPTER_FOLDER
        if jax.process_index() == 0:
            with tempfile.TemporaryDirectory() as local:  # the workdir may be remote
                for file in save_adapter(arrays, self.adapter, self.layout, local, base=base).iterdir():
                    write_atomic(folder / file.name, file.read_bytes())
        return folder


def tuning(config: ConfigDict, family: Family, model_config: Any) -> Tuning:
    """What `config.model` says, for a model of this family and config.

    Raises:
      InputError: no such mode or layer, or options without an adapter.
    """
    model: Any = config.model
    layout = Layout.of(family, model_config)
    freeze = adapters.freeze_patterns(model.adapter, layout.own_head())
    if model.adapter in ("full", "probe"):
        if model.adapter_targets or model.adapter_feedforward:
            raise InputError(f"model.adapter_targets is for model.adapter=ia3 or lora, not {model.adapter}")
        return Tuning(None, layout, (*model.freeze, *freeze))
    options = {"targets": tuple(model.adapter_targets), "feedforward": tuple(model.adapter_feedforward)}
    adapter = Adapter(model.adapter, **options, rank=model.adapter_rank, alpha=model.adapter_alpha)
    adapters.placements(adapter, layout.rows)  # fails here, not while it compiles
    return Tuning(adapter, layout, (*model.freeze, *freeze))
