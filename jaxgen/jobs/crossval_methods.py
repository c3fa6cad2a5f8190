"""The methods of the TF-perturbation benchmark by name: where each is written, and what it is given."""

import dataclasses
import importlib
from typing import Any

from ml_collections import ConfigDict

from jaxgen.baselines.method import Method
from jaxgen.errors import InputError, nearest


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
      path: `module:name` of a dataclass that is a `Method`, or (no `options`) of a function config -> `Method`.
      published: its name in the published result files.
      needs: columns of `data.perturbation.Tables` that it reads, besides the targets.
      options: group of `config.perturbation` with values for its fields.
      on_device: computes with JAX, and so runs beside those that keep to the CPU.
      sorts_rows: the published script sorts the perturbations by id before it applies the folds (kept by `faithful`).
      stem: the part of `metrics_{stem}_5fold.json` that names it; empty = `published`.
      clips_plot: its published plot shows [-1, 1] only.
      infinite_when_empty: its published script gives perturbations without any value infinite errors, not NaN (kept by `faithful`).
    """

    path: str
    published: str
    needs: tuple[str, ...] = ()
    options: str = ""
    on_device: bool = False
    sorts_rows: bool = False
    stem: str = ""
    clips_plot: bool = True
    infinite_when_empty: bool = True


_MLP = "jaxgen.baselines.embedding_mlp:EmbeddingMLP"
METHODS = {
    "mean": Entry("jaxgen.baselines.mean_response:MeanResponse", "mean_response", options="mean", infinite_when_empty=False),
    "lel_nt": Entry(
        "jaxgen.baselines.lel:NTLinear", "linear_nt_embed", ("nt_tf", "nt_gene"), "lel", stem="linear_nt", infinite_when_empty=False
    ),
    "lel_pca": Entry("jaxgen.baselines.lel:PCALinear", "linear_pca", ("target_gene",), "lel", stem="linear", infinite_when_empty=False),
    "mlp_nt": Entry(_MLP, "mlp_nt", ("nt_tf",), "mlp", on_device=True, sorts_rows=True),
    "mlp_hyena": Entry(_MLP, "mlp_hyena", ("hyena_tf",), "mlp", on_device=True, sorts_rows=True),
    "concat": Entry(
        "jaxgen.baselines.concat_mlp:ConcatMLP", "concat_mlp_cv", ("nt_tf", "nt_gene"), "concat", on_device=True, clips_plot=False
    ),
    "xgboost": Entry("jaxgen.baselines.xgboost:XGBoost", "xgboost_hyena", ("hyena_tf",), "xgboost", sorts_rows=True),
    "nt_ia3": Entry("jaxgen.jobs.crossval_ia3:make", "nt_ia3_cv", ("sequences",), on_device=True, clips_plot=False),
}


def chosen(names: tuple[str, ...]) -> list[str]:
    """The methods of `perturbation.methods` in the table's order, `mean` always among them.

    Raises:
      InputError: a name that is no method.
    """
    for name in names:
        if name != "all" and name not in METHODS:
            raise InputError(f"perturbation.methods: {name!r} is not a method{nearest(name, [*METHODS, 'all'])}")
    return [name for name in METHODS if name == "mean" or name in names or "all" in names]


def make(name: str, config: ConfigDict) -> Method:
    """The method, with its options from the config."""
    entry = METHODS[name]
    module, _, attribute = entry.path.partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    if not entry.options:
        return factory(config)
    options: dict[str, Any] = config.perturbation.get(entry.options, ConfigDict()).to_dict()
    return factory(**{field.name: options[field.name] for field in dataclasses.fields(factory) if field.name in options})
