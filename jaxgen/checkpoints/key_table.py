"""Checkpoint key tables: one list of rows per model, read in both directions and strict.

A row says which public tensor is which parameter of ours, and how its axes move:

    Row("model.embed.weight", "embedding", also_public=("lm_head.weight",))
    Row("model.layers.{i}.in_proj.weight", "blocks.in_proj.kernel", LINEAR)
    Row("model.layers.{a}.attn.Wqkv.weight", ("blocks.{a}.q.kernel", "blocks.{a}.k.kernel", "blocks.{a}.v.kernel"), LINEAR, axis=1)
    Row("model.layers.{i}.pos_emb.z", "blocks.filter.z", "1 l e -> l e")
    Row("model.layers.{i}.rotary.inv_freq", None)

- **Letters** in braces run over the indices given as `sizes` (a number or any sequence, of words too: `mamba_{d}` over fwd, rev).
  A letter that only the public name has is stacked into a leading axis of ours, so a scanned model and a list of torch layers meet
  in one row; a letter in both names makes one parameter each.
- **Layout** is "public axes -> our axes". `1` is an axis of size one that the other side lacks; `(h d)` is one public axis that we
  keep as two. `None` keeps the axes.
- **Several names** on a side are joined along `axis` of our layout: equal public parts, our parts by their own sizes.
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
import string
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from jaxgen.errors import InputError

LINEAR = "o i -> i o"  # torch Linear
CONV = "o i w -> w i o"  # torch Conv1d, depthwise ones (channels, 1, width) too

Sizes = Mapping[str, int | Collection[int | str]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      public: public name, or several whose tensors are equal parts of one of ours.
      ours: our dotted name, or several that are parts of the public tensor; None for what a file may hold and we neither need nor write.
      layout: how axes move, `"o i -> i o"`; per layer, without the stacked axes.
      axis: where several names are joined, counted in our layout.
      also_public: other names of the same tensor. A file may use any of them; those present must be equal; `public` alone is written.
      tied_to: a public tensor that stands in when this one is absent.
    """

    public: str | tuple[str, ...]
    ours: str | tuple[str, ...] | None
    layout: str | None = None
    axis: int = 0
    also_public: tuple[str, ...] = ()
    tied_to: str | None = None

    def __post_init__(self):
        if (self.also_public or self.tied_to) and not isinstance(self.public, str):
            raise ValueError(f"{self.public}: also_public and tied_to need a single public name")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of ours, as a tuple."""
        return _tuple(self.ours)


def linear_rows(public: str, ours: str, bias: bool = True) -> list[Row]:
    """A torch Linear as a `layers.core.Linear`."""
    rows = [Row(public + ".weight", ours + ".kernel", LINEAR), Row(public + ".bias", ours + ".bias")]
    return rows if bias else rows[:1]


def norm_rows(public: str, ours: str) -> list[Row]:
    """A torch LayerNorm as a `layers.core.LayerNorm`."""
    return [Row(public + ".weight", ours + ".scale"), Row(public + ".bias", ours + ".bias")]


class KeyTableError(InputError):
    """A checkpoint and a model do not fit. The message's first line sums up; `problems` lists every tensor."""

    def __init__(self, where: str, problems: Sequence[tuple[str, str]]):
        self.problems = tuple(f"{kind:8} {text}" for kind, text in problems)
        counts = ", ".join(f"{n} {kind}" for kind, n in collections.Counter(kind for kind, _ in problems).items())
        first = "; ".join(f"{kind} {text}" for kind, text in problems[:4]) + ("; ..." if len(problems) > 4 else "")
        super().__init__("\n  ".join([f"{where} does not fit the model ({counts}): {first}", *self.problems]))


@functools.cache
def _parse(layout: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """`"(h d) c -> c h d"` -> ((("h", "d"), ("c",)), ("c", "h", "d"))."""
    left, right = layout.split("->")
    groups = tuple(tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\S+", left))
    names, ours = [name for group in groups for name in group if name != "1"], [name for name in right.split() if name != "1"]
    if sorted(names) != sorted(set(ours)):
        raise ValueError(f"layout {layout!r}: the two sides must name the same axes, each once")
    return groups, tuple(right.split())


def _axis_sizes(layout: str, shape: tuple[int, ...]) -> dict[str, int]:
    right = _parse(layout)[1]
    if len(right) != len(shape) or any(name == "1" and size != 1 for name, size in zip(right, shape)):
        raise ValueError(f"layout {layout!r} does not describe a parameter of shape {shape}")
    return {name: size for name, size in zip(right, shape) if name != "1"}


def _public_shape(layout: str | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the public tensor that becomes one of our `shape`."""
    if layout is None:
        return shape
    sizes = {"1": 1} | _axis_sizes(layout, shape)
    return tuple(math.prod(sizes[name] for name in group) for group in _parse(layout)[0])


def _to_ours(x: np.ndarray, layout: str | None, shape: tuple[int, ...]) -> np.ndarray:
    if layout is None:
        return x
    sizes = _axis_sizes(layout, shape)
    names = [name for group in _parse(layout)[0] for name in group if name != "1"]
    return x.reshape([sizes[name] for name in names]).transpose([names.index(name) for name in sizes]).reshape(shape)


def _to_public(x: np.ndarray, layout: str | None) -> np.ndarray:
    if layout is None:
        return x
    sizes = _axis_sizes(layout, x.shape)
    names = [name for group in _parse(layout)[0] for name in group if name != "1"]
    return x.reshape(tuple(sizes.values())).transpose([list(sizes).index(name) for name in names]).reshape(_public_shape(layout, x.shape))


@dataclasses.dataclass(frozen=True)
class _Group:
    """A row with its shared letters filled in: `ours` against `stack` layers, each a choice of the remaining letters."""

    row: Row
    ours: tuple[str, ...]
    stack: tuple[int, ...]
    layers: tuple[dict[str, int | str], ...]

    def names(self, patterns: str | tuple[str, ...]) -> Iterator[list[str]]:
        """`patterns` filled in, for each layer."""
        for letters in self.layers:
            yield [pattern.format(**letters) for pattern in _tuple(patterns)]


def _tuple(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else names


def _letters(names: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(field for name in names for _, field, _, _ in string.Formatter().parse(name) if field))


def _groups(rows: Sequence[Row], sizes: Sizes) -> Iterator[_Group]:
    for row in rows:
        ours, letters = _tuple(row.ours), _letters(_tuple(row.public))
        if unknown := [letter for letter in (*letters, *_letters(ours)) if letter not in sizes]:
            raise ValueError(f"row {row.public}: `sizes` says nothing of {{{unknown[0]}}}")
        indices = {letter: tuple(range(n) if isinstance(n := sizes[letter], int) else n) for letter in letters}
        shared = [letter for letter in letters if letter in _letters(ours)]
        stacked = [letter for letter in letters if letter not in shared]
        for outer in itertools.product(*(indices[letter] for letter in shared)):
            chosen = dict(zip(shared, outer))
            inner = itertools.product(*(indices[letter] for letter in stacked))
            layers = tuple(chosen | dict(zip(stacked, choice)) for choice in inner)
            if layers:  # a model may have no layer of this kind
                yield _Group(row, tuple(name.format(**chosen) for name in ours), tuple(len(indices[letter]) for letter in stacked), layers)


def load(
    tensors: Mapping[str, np.ndarray],
    rows: Sequence[Row],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    sizes: Sizes | None = None,
    ignore: Sequence[str] = (),
    dtype: np.typing.DTypeLike | None = None,
    where: str = "the checkpoint",
) -> dict[str, np.ndarray]:
    """Public tensors -> our parameters.

    Args:
      tensors: public name -> array.
      rows: the model's table.
      shapes: our name -> shape, of every parameter that must be filled.
      sizes: letter -> how many, or which indices.
      ignore: regular expressions; public names that one of them matches whole may go unused.
      dtype: floating tensors are cast to it (None: as stored); integers and booleans keep theirs.
      where: the checkpoint, for the message.

    Returns:
      Our name -> array, exactly the names of `shapes`.

    Raises:
      KeyTableError: listing all missing, unused, misshapen and unequal tensors, and parameters without a row.
    """
    params: dict[str, np.ndarray] = {}
    problems: list[tuple[str, str]] = []
    groups = list(_groups(rows, sizes or {}))

    def find(name: str, others: list[str], tied_to: str, want: tuple[int, ...]) -> np.ndarray:
        present = [n for n in (name, *others) if n in tensors] or [n for n in (tied_to,) if n in tensors]
        if not present:
            problems.append(("missing", name))
            return np.empty(0)
        x = tensors[present[0]]
        if x.shape != want:
            problems.append(("shape", f"{present[0]}: {x.shape} in the file, {want} expected"))
        problems.extend(("differs", f"{n}: not equal to {present[0]}") for n in present[1:] if not _same(x, tensors[n]))
        return x

    for group in groups:
        row, stack = group.row, len(group.stack)
        unfit = [name for name in group.ours if name not in shapes or tuple(shapes[name][:stack]) != group.stack]
        problems += [("no slot", f"{name}: stacked {group.stack} by the table, {shapes.get(name)} in the model") for name in unfit]
        if unfit or not group.ours:
            continue
        ours = [tuple(shapes[name][stack:]) for name in group.ours]
        part = _part_shape(row, ours)
        cuts = list(itertools.accumulate(shape[row.axis] for shape in ours[:-1]))
        layers = []
        for names, others, tied_to in zip(*map(group.names, (row.public, row.also_public, row.tied_to or ""))):
            found = [find(name, others, tied_to[0], _public_shape(row.layout, part)) for name in names]
            if not problems:  # else the table is read on only to list what else is wrong
                layers.append(_split(_join([_to_ours(x, row.layout, part) for x in found], row.axis), cuts, row.axis))
        if not problems:
            for name, values in zip(group.ours, zip(*layers)):
                params[name] = np.stack(values).reshape(shapes[name]) if stack else values[0]
    patterns = [(group, pattern) for group in groups for pattern in (group.row.public, group.row.also_public)]
    known = {name for group, pattern in patterns for names in group.names(pattern) for name in names}
    filled = collections.Counter(name for group in groups for name in group.ours)
    problems += [("no row", name) for name in shapes if name not in filled]
    problems += [("two rows", name) for name, count in filled.items() if count > 1]
    problems += [("unused", name) for name in tensors if name not in known and not any(re.fullmatch(p, name) for p in ignore)]
    if problems:
        raise KeyTableError(where, problems)
    return {name: _cast(params[name], dtype) for name in shapes}


def _part_shape(row: Row, ours: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape, in our layout, of each public part."""
    parts = len(_tuple(row.public))
    if len(ours) == parts == 1:
        return ours[0]
    joined = list(ours[0])
    joined[row.axis], rest = divmod(sum(shape[row.axis] for shape in ours), parts)
    if rest:
        raise ValueError(f"row {row.ours}: axis {row.axis} does not fall into {parts} equal parts")
    return tuple(joined)


def _join(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    return np.concatenate(parts, axis) if len(parts) > 1 else parts[0]


def _split(x: np.ndarray, cuts: int | list[int], axis: int) -> list[np.ndarray]:
    """`np.split`, at positions or into equal parts, that leaves an uncut scalar alone."""
    return [x] if cuts in (1, []) else np.split(x, cuts, axis)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()  # bytes: NaN equals itself


def _cast(x: np.ndarray, dtype: np.typing.DTypeLike | None) -> np.ndarray:
    floating = x.dtype.kind in "fV"  # V: bfloat16 and float8
    return x.astype(dtype, copy=False) if floating and dtype is not None else x


def export(
    params: Mapping[str, np.ndarray],
    rows: Sequence[Row],
    *,
    sizes: Sizes | None = None,
    duplicates: bool = False,
    where: str = "the export",
) -> dict[str, np.ndarray]:
    """Our parameters -> public tensors: `load` read backwards, bit for bit.

    `duplicates` writes the names of `also_public` too, for originals that load strictly.

    Raises:
      KeyTableError: listing the parameters that no row writes, and those that a row wants and `params` lacks.
    """
    tensors: dict[str, np.ndarray] = {}
    groups = [group for group in _groups(rows, sizes or {}) if group.ours]
    needed = {name: None for group in groups for name in group.ours}
    problems = [("missing", name) for name in needed if name not in params] + [("no row", name) for name in params if name not in needed]
    if problems:
        raise KeyTableError(where, problems)
    for group in groups:
        row, values = group.row, [np.asarray(params[name]) for name in group.ours]
        for position, names, also in zip(np.ndindex(group.stack), group.names(row.public), group.names(row.also_public)):
            fused = _join([value[(*position, ...)] for value in values], row.axis)  # ...: a scalar stays an array
            for name, part in zip(names, _split(fused, len(names), row.axis)):
                for public in (name, *also) if duplicates else (name,):
                    tensors[public] = _to_public(part, row.layout)
    return tensors


def unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the prefix that DataParallel (`module.`) or torch.compile (`_orig_mod.`) gave to every name."""
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return dict(tensors)


def current_norm_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`LayerNorm.gamma` and `.beta`, as the oldest and the newest transformers write them, under `weight` and `bias`."""
    names = {"gamma": "weight", "beta": "bias"}
    return {re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda m: names[m[0]], name): x for name, x in tensors.items()}


def strip_prefix(tensors: Mapping[str, np.ndarray], prefixes: Sequence[str]) -> dict[str, np.ndarray]:
    """Takes from each name the longest of `prefixes` that it begins with; other names stay. For layouts with `model.`, `hyena.` or none.

    Raises:
      InputError: two tensors would get one name.
    """
    stripped: dict[str, np.ndarray] = {}
    for name, x in tensors.items():
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default="")
        if stripped.setdefault(name[len(prefix) :], x) is not x:
            raise InputError(f"the checkpoint holds {name!r} a second time without {prefix!r}; keep one of the two layouts")
    return stripped
