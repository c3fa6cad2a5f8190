"""Parameter-efficient fine-tuning: IA3 or LoRA on the linear layers of any backbone, chosen by their public names as peft does.

A target is the public name of a linear layer or the end of it, after a dot: `attention.self.key`, `output.dense`. The family's key
table translates it to the layers of ours. One suffix may mean several layers: in BERT-like models `output.dense` is the projection after
attention as well as the one that ends the feed-forward block.
"""

import dataclasses
import functools
import itertools
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jaxgen.checkpoints.key_table import LINEAR, Row, Sizes
from jaxgen.errors import InputError, nearest
from jaxgen.layers.adapters import PARAMETERS, IA3Linear, LoRALinear, merge_arrays
from jaxgen.layers.core import Linear
from jaxgen.layers.variables import named_arrays, with_arrays

MODES = ("full", "probe", "ia3", "lora")
# Public names of a model's own task head: trained beside an adapter, never adapted (peft's modules_to_save).
HEAD_MODULES = ("classifier", "score")
_HEAD = re.compile(rf"(^|\.)({'|'.join(HEAD_MODULES)})\.")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the parameters of one model are named in public: see the fields of the same names of `models.family.Family`."""

    rows: Sequence[Row]
    sizes: Sizes
    public_names: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    export_name: Callable[[str], str]

    @classmethod
    def of(cls, family: Any, config: Any) -> "Layout":
        """Of a model of a family."""
        return cls(family.key_table(config), family.table_sizes(config), family.public_names, family.export_name)

    def head_rows(self) -> list[Row]:
        """The rows of the model's own head; none for a model that has none."""
        return [row for row in self.rows if row.ours and _HEAD.search(row.public if isinstance(row.public, str) else row.public[0])]

    def own_head(self) -> list[str]:
        """Our names of the parameters of the model's own head."""
        return [name for row in self.head_rows() for name in row.parameters]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is added to which layers.

    Attributes:
      kind: "ia3" or "lora".
      targets: public names, or ends of them; empty = every linear layer of the blocks.
      feedforward: those of the targets that IA3 scales on their input; the others it scales on their output.
      rank, alpha: LoRA adds alpha / rank times a product of that rank.
    """

    kind: str
    targets: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self):
        if self.kind not in ("ia3", "lora"):
            raise InputError(f"model.adapter={self.kind!r}: an adapter is ia3 or lora")
        if self.rank < 1 or self.alpha <= 0:
            raise InputError(f"model.adapter_rank={self.rank} and model.adapter_alpha={self.alpha:g} must be positive")


@dataclasses.dataclass(frozen=True)
class Placement:
    """A public linear layer and what it is of ours, with the letters of the key table in both names.

    A public layer that fuses several, such as the two halves of a gated network, is several of ours.
    """

    public: str
    ours: tuple[str, ...]
    scale_input: bool

    def paths(self, sizes: Sizes) -> Iterator[tuple[str, ...]]:
        """The names of ours, letters filled in, sorted: the first owns what the others share with it."""
        letters = list(dict.fromkeys(field for name in self.ours for _, field, _, _ in string.Formatter().parse(name) if field))
        ranges = (range(n) if isinstance(n := sizes[letter], int) else n for letter in letters)
        for choice in itertools.product(*ranges):
            yield tuple(sorted(name.format(**dict(zip(letters, choice))) for name in self.ours))


def placements(adapter: Adapter, rows: Sequence[Row]) -> list[Placement]:
    """The layers that an adapter goes on, in the order of the key table `rows`.

    Raises:
      InputError: a model without linear layers, a target that is none of them, or `feedforward` that is no target.
    """
    linear = {}
    for row in rows:
        if row.layout == LINEAR and isinstance(row.public, str) and "{" in row.public and not _HEAD.search(row.public):
            linear[row.public.removesuffix(".weight")] = tuple(name.removesuffix(".kernel") for name in row.parameters)
    if not linear:
        raise InputError(f"model.adapter={adapter.kind}: this model has no layers to adapt; set model.adapter=full, which trains all of it")
    for field, patterns in (("adapter_targets", adapter.targets), ("adapter_feedforward", adapter.feedforward)):
        for pattern in patterns:
            if not any(_ends(name, (pattern,)) for name in linear):
                ends = sorted({name.rpartition("}.")[2] for name in linear})
                raise InputError(
                    f"model.{field}: {pattern!r} is no linear layer of this model{nearest(pattern, ends)}; it has {', '.join(ends)}"
                )
    chosen = [name for name in linear if not adapter.targets or _ends(name, adapter.targets)]
    if adapter.kind == "ia3" and (stray := [p for p in adapter.feedforward if not any(_ends(name, (p,)) for name in chosen)]):
        raise InputError(f"model.adapter_feedforward: {stray[0]!r} is not among model.adapter_targets")
    found = [Placement(name, linear[name], adapter.kind == "ia3" and _ends(name, adapter.feedforward)) for name in chosen]
    return found


def _ends(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith("." + target) for target in targets)


def adapt(backbone: nnx.Module, adapter: Adapter, layout: Layout, rngs: nnx.Rngs) -> nnx.Module:
    """The backbone with its chosen layers replaced by adapted ones, in place; it computes what it did before."""
    for place in placements(adapter, layout.rows):
        for paths in place.paths(layout.sizes):
            owner: Any = None
            for path in paths:
                *above, name = path.split(".")
                parent: Any = functools.reduce(_child, above, backbone)
                base = _child(parent, name)
                if not isinstance(base, Linear):
                    raise TypeError(f"{path} is a {type(base).__name__}, not a Linear")
                if adapter.kind == "ia3":
                    new = IA3Linear(base, rngs, scale_input=place.scale_input, owner=owner)
                else:
                    new = LoRALinear(base, rngs, rank=adapter.rank, alpha=adapter.alpha, owner=owner)
                owner = owner or new
                if name.isdigit():
                    parent[int(name)] = new
                else:
                    setattr(parent, name, new)
    return backbone


def _child(module: Any, name: str) -> Any:
    return module[int(name)] if name.isdigit() else getattr(module, name)


def owners(adapter: Adapter, layout: Layout) -> dict[str, str]:
    """Layer -> the layer that lists what it shares, for `merge_arrays`."""
    found = [paths for place in placements(adapter, layout.rows) for paths in place.paths(layout.sizes)]
    return {path: paths[0] for paths in found for path in paths[1:]}


def merge(adapted: nnx.Module, base: nnx.Module, adapter: Adapter, layout: Layout) -> nnx.Module:
    """A module built like `base`, with the weights of `adapted` and the adapter's effect in them. `base` may be abstract."""
    graphdef, state = nnx.split(base)
    return nnx.merge(graphdef, with_arrays(state, merge_arrays(named_arrays(nnx.state(adapted)), owners(adapter, layout))))


def freeze_patterns(mode: str, own_head: Sequence[str], prefix: str = "backbone.") -> tuple[str, ...]:
    """Regular expressions of what a mode leaves untrained: nothing, or the backbone except its adapters and its own head.

    Args:
      mode: one of `MODES`.
      own_head: from `Layout.own_head`.
      prefix: of the backbone's parameters.

    Raises:
      InputError: no such mode.
    """
    if mode not in MODES:
        raise InputError(f"model.adapter={mode!r}{nearest(mode, MODES)}")
    if mode == "full":
        return ()
    kept = [rf".*\.(?:{'|'.join(PARAMETERS)})$", *(re.escape(name) + "$" for name in own_head)]
    return (rf"^{re.escape(prefix)}(?!{'|'.join(kept)})",)
