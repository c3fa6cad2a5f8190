"""TF-perturbation data: targets, embeddings and sequences brought to one order of perturbations and genes, matched by id or name."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data import perturbation_files as files
from jaxgen.errors import InputError

NEEDS = ("nt_tf", "nt_gene", "hyena_tf", "sequences", "target_gene")
SIMULATED_FILE = "simulated.json"


@dataclasses.dataclass(frozen=True)
class Tables:
    """Everything of P perturbations and G genes, in one order; what was not asked for is None.

    Attributes:
      ids: (P,) perturbation ids as in the targets.
      gene_ids: (P,) gene ids of the perturbations, as far as the targets or the table of TFs tell; else the perturbation ids.
      genes: (G,) read-out gene ids.
      targets: float32 (P, G), NaN = missing, never infinite.
      nt_tf, hyena_tf: float32 (P, K), embeddings of the perturbed genes.
      nt_gene: float32 (G, K), embeddings of the read-out genes.
      sequences: (P,) DNA around the start of the perturbed gene.
      target_gene: int64 (P,), position of the perturbed gene among `genes`, -1 = not read out.
      notes: what was left out, and why.
      simulated: what `simulated.json` in the folder says; empty for real data.
    """

    ids: list[str]
    gene_ids: list[str]
    genes: list[str]
    targets: np.ndarray
    nt_tf: np.ndarray | None = None
    hyena_tf: np.ndarray | None = None
    nt_gene: np.ndarray | None = None
    sequences: list[bytes] | None = None
    target_gene: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    simulated: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which part of the data to keep; 0 = all. In this order: first perturbations, first genes, genes of largest mean |change|."""

    max_perturbations: int = 0
    max_genes: int = 0
    top_genes: int = 0


def load(
    folder: str | os.PathLike,
    names: Mapping[str, str],
    needs: Sequence[str],
    limits: Limits | None = None,
    *,
    drop_missing: bool = False,
    faithful: bool = False,
) -> Tables:
    """Reads a data folder.

    Ids are matched with case ignored: as they are, and by the names that the targets and the table of TFs give them.

    Args:
      folder: the data folder, in the published layout or flat.
      names: file names, the group `perturbation.files` of the config.
      needs: which of `NEEDS` to load.
      limits: the part to keep.
      drop_missing: leave out perturbations (and genes) that a needed table lacks, instead of refusing them.
      faithful: as the published scripts: drop what is missing, take the first of repeated ids (the last of repeated sequences), keep genes
        without any value.

    Raises:
      InputError: a missing or damaged file; ids that are repeated or missing; infinite targets; embeddings that do not fit together.
    """
    if not Path(folder).is_dir():
        raise InputError(f"data.path={folder}: no such folder")
    notes: list[str] = []
    targets = files.read_targets(files.find_targets(folder, names["targets"]))
    targets = _unique_rows(targets, faithful, notes)
    if index := files.find(folder, names["gene_index"]):
        targets = _select_genes(targets, index, notes)
    targets = _limited(targets, limits or Limits(), faithful)
    if not faithful:
        targets = _without_empty_genes(targets, notes)
    by_name = "target_gene" in needs or "sequences" in needs or targets.names is None
    path = files.find(folder, names["tf_sequences"])
    if path is None and "sequences" in needs:
        path = files.require(folder, names["tf_sequences"], "tf_sequences")
    table = files.read_genes(path) if path is not None and by_name else None
    if table is not None and not faithful:
        _refuse_repeated(table.path, table.ids)
    keys = _keys(targets, table)
    found: dict[str, Any] = {}
    rows: dict[str, np.ndarray] = {}  # row of every perturbation in each table that must have it
    for need in ("nt_tf", "hyena_tf"):
        if need in needs:
            found[need] = _read_embeddings(folder, names, need, faithful)
            rows[need] = _lookup(keys, found[need].ids)
    if "sequences" in needs:
        assert table is not None
        rows["sequences"] = _lookup(keys, table.ids, last=faithful)
    paths = {"sequences": table.path if table else None, **{need: embeddings.path for need, embeddings in found.items()}}
    keep_p = np.ones(len(targets.ids), bool)
    for need, row in rows.items():
        keep_p &= _present(row, targets.ids, paths[need], "perturbations", drop_missing or faithful, notes)
    keep_g, gene_rows = np.ones(len(targets.genes), bool), None
    if "nt_gene" in needs:
        found["nt_gene"] = _read_embeddings(folder, names, "nt_gene", faithful)
        gene_rows = _lookup([(gene,) for gene in targets.genes], found["nt_gene"].ids)
        keep_g = _present(gene_rows, targets.genes, found["nt_gene"].path, "genes", drop_missing or faithful, notes)
        _same_width(found)
    if not keep_p.any() or not keep_g.any():
        raise InputError(f"{targets.path}: no perturbation or no gene is left; the tables share no ids ({targets.ids[0]!r}, ...)")
    genes = [gene for gene, keep in zip(targets.genes, keep_g) if keep]
    columns: dict[str, Any] = {need: _rows_of(found[need], rows[need][keep_p]) for need in ("nt_tf", "hyena_tf") if need in found}
    if gene_rows is not None:
        columns["nt_gene"] = _rows_of(found["nt_gene"], gene_rows[keep_g])
    if "sequences" in needs and table is not None:
        columns["sequences"] = [table.sequences[row] for row in rows["sequences"][keep_p]]
    if "target_gene" in needs:
        columns["target_gene"] = _lookup(keys, genes)[keep_p]
        notes.append(f"{int((columns['target_gene'] >= 0).sum())} of {keep_p.sum()} perturbed genes are read out themselves")
    ids = [name for name, keep in zip(targets.ids, keep_p) if keep]
    to_id = {} if targets.names or table is None else dict(zip((x.upper() for x in table.names), table.ids))
    gene_ids = [to_id.get(name.upper(), name) for name in ids]
    values = np.ascontiguousarray(targets.values[np.ix_(keep_p, keep_g)])
    if missing := int(np.isnan(values).sum()):
        notes.append(f"{missing:,} of {values.size:,} targets are missing")
    return Tables(ids, gene_ids, genes, values, notes=tuple(notes), simulated=_simulated(folder), **columns)


def _simulated(folder: str | os.PathLike) -> dict[str, Any]:
    path = Path(folder) / SIMULATED_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _refuse_repeated(path: Path, ids: Sequence[str]) -> None:
    if repeated := files.first_repeated(ids):
        raise InputError(f"{path}: id {repeated!r} occurs more than once; keep one row per id")


def _unique_rows(targets: files.Targets, faithful: bool, notes: list[str]) -> files.Targets:
    if not faithful:
        _refuse_repeated(targets.path, targets.ids)
        return targets
    first = list(dict(reversed([(name, i) for i, name in enumerate(targets.ids)])).values())
    if len(first) == len(targets.ids):
        return targets
    notes.append(f"{len(targets.ids) - len(first)} repeated perturbations left out, the first of each kept")
    return _take(targets, np.sort(first), np.arange(len(targets.genes)))


def _take(targets: files.Targets, rows: np.ndarray, genes: np.ndarray) -> files.Targets:
    return dataclasses.replace(
        targets,
        ids=[targets.ids[i] for i in rows],
        names=targets.names and [targets.names[i] for i in rows],
        genes=[targets.genes[i] for i in genes],
        values=targets.values[np.ix_(rows, genes)],
    )


def _select_genes(targets: files.Targets, index: Path, notes: list[str]) -> files.Targets:
    """The genes of the index, in its order; one that the targets lack becomes a column of NaN, as published."""
    genes = files.read_ids(index)
    _refuse_repeated(index, genes)
    position = {gene: i for i, gene in enumerate(targets.genes)}
    columns = np.array([position.get(gene, -1) for gene in genes], np.int64)
    if not len(columns) or columns.max() < 0:
        raise InputError(f"{index}: none of its {len(genes)} genes is a column of {targets.path.name}")
    if lacking := int((columns < 0).sum()):
        notes.append(f"{lacking} genes of {index.name} are not among the targets")
    values = np.where(columns >= 0, targets.values[:, columns], np.float32(np.nan))
    return dataclasses.replace(targets, genes=genes, values=values)


def _limited(targets: files.Targets, limits: Limits, faithful: bool) -> files.Targets:
    rows = np.arange(len(targets.ids))[: limits.max_perturbations or None]
    genes = np.arange(len(targets.genes))[: limits.max_genes or None]
    targets = _take(targets, rows, genes)
    if not 0 < limits.top_genes < len(targets.genes):
        return targets
    size, n = np.abs(targets.values.astype(np.float64)), (~np.isnan(targets.values)).sum(0)
    # The published scripts take plain means, so that a gene with one missing value sorts above all others.
    strength = size.mean(0) if faithful else np.nansum(size, axis=0) / np.maximum(n, 1)
    top = np.sort(np.argsort(strength, kind="stable")[-limits.top_genes :])
    return _take(targets, np.arange(len(targets.ids)), top)


def _without_empty_genes(targets: files.Targets, notes: list[str]) -> files.Targets:
    """Without genes that have no value at all: they can be neither learned nor judged."""
    known = ~np.isnan(targets.values)
    genes = known.any(0)
    if not genes.any():
        raise InputError(f"{targets.path}: every value is missing")
    if genes.all():
        return targets
    empty = [targets.genes[i] for i in np.flatnonzero(~genes)]
    notes.append(f"{len(empty)} genes without any value left out ({', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''})")
    return _take(targets, np.arange(len(targets.ids)), np.flatnonzero(genes))


def _keys(targets: files.Targets, table: files.Genes | None) -> list[tuple[str, ...]]:
    """What each perturbation may be called in other tables: its id and name, and the name and id that the table of TFs gives these."""
    to_name = dict(zip((x.upper() for x in table.ids), table.names)) if table else {}
    to_id = dict(zip((x.upper() for x in table.names), table.ids)) if table else {}
    keys = []
    for i, own in enumerate(targets.ids):
        given = [own, *([targets.names[i]] if targets.names else [])]
        other = [mapping.get(key.upper(), "") for key in given for mapping in (to_id, to_name)]
        keys.append(tuple(key.upper() for key in (*given, *other) if key))
    return keys


def _lookup(keys: Sequence[tuple[str, ...]], ids: Sequence[str], last: bool = False) -> np.ndarray:
    """int64: row in `ids` of the first of each one's keys that is there, -1 = none; of repeated ids the first row (or the `last`)."""
    pairs = [(name.upper(), row) for row, name in enumerate(ids)]
    row_of = dict(pairs if last else reversed(pairs))
    return np.array([next((row_of[key.upper()] for key in of if key.upper() in row_of), -1) for of in keys], np.int64)


def _read_embeddings(folder: str | os.PathLike, names: Mapping[str, str], need: str, faithful: bool) -> files.Embeddings:
    path, ids = (files.require(folder, names[field], field) for field in (need, f"{need}_ids"))
    embeddings = files.read_embeddings(path, ids)
    if not faithful:
        _refuse_repeated(ids, embeddings.ids)
    return embeddings


def _present(rows: np.ndarray, ids: Sequence[str], path: Path | None, what: str, drop: bool, notes: list[str]) -> np.ndarray:
    """bool: which are in the table at `path`."""
    missing = [name for name, row in zip(ids, rows) if row < 0]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        if not drop:
            remedy = "add them, or leave them out with --config.perturbation.drop_missing=true"
            raise InputError(f"{path}: lacks {len(missing)} of {len(ids)} {what} ({some}); {remedy}")
        notes.append(f"{len(missing)} {what} left out, which {path.name if path else ''} lacks ({some})")
    return rows >= 0


def _same_width(found: Mapping[str, files.Embeddings]) -> None:
    if "nt_tf" in found and found["nt_tf"].values.shape[1] != found["nt_gene"].values.shape[1]:
        tf, gene = found["nt_tf"], found["nt_gene"]
        raise InputError(
            f"{tf.path}: embeddings of width {tf.values.shape[1]}, but those of {gene.path.name} have {gene.values.shape[1]}; "
            "both must come from one model"
        )


def _rows_of(embeddings: files.Embeddings, rows: np.ndarray) -> np.ndarray:
    values = embeddings.values[rows]
    if not np.isfinite(values).all():
        row = rows[np.argmin(np.isfinite(values).all(1))]
        raise InputError(f"{embeddings.path}: the embedding of {embeddings.ids[row]!r} is not finite; export it again")
    return values
