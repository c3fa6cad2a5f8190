"""SIMULATED TF-perturbation data in the file formats of the real ones. No sequence and no value here comes from an organism.

Every promoter, of a TF or of a read-out gene, carries 0 ... c copies of each of four motifs over a random background. The change of gene g
under perturbation p is b_g + z_p' M z_g + noise: z are the standardised motif counts of the two promoters, M is a random rotation. So
effects have rank four and can be read from sequence. Part of the TFs are read out themselves, with the same promoter.

The embeddings are random projections of k-mer counts under the file names of the real ones; no language model made them.
"""

import csv
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxgen.data.perturbation import SIMULATED_FILE
from jaxgen.errors import InputError

_BASES = np.frombuffer(b"ACGT", np.uint8)
_MOTIFS, _MOTIF_LENGTH, _SLOT = 4, 10, 12
_SIGNAL, _GENE_MEAN, _NOISE = 0.15, 0.1, 0.1  # standard deviations of the three terms
# Stem of the file names -> (k, width) of the projection that stands in for the embeddings of that model.
_PROJECTIONS = {"nt": (6, 64), "hyena": (5, 48)}


def write(folder: str | os.PathLike, seed: int = 42, perturbations: int = 100, genes: int = 100, length: int = 600) -> Path:
    """Simulates a data folder: targets, gene index, sequences and embeddings, and `simulated.json` with what is attainable.

    Nothing is done when the folder holds the data of these very options. It appears whole.

    Args:
      folder: where to write; holds nothing else.
      seed: of everything.
      perturbations, genes: size of the targets.
      length: bases per sequence.

    Raises:
      InputError: sizes too small, or a folder of other content.
    """
    if perturbations < 10 or genes < 10 or length < 2 * _MOTIFS * _SLOT:
        raise InputError(f"perturbation.simulated: at least 10 perturbations, 10 genes and a length of {2 * _MOTIFS * _SLOT} are needed")
    folder, options = Path(folder), {"seed": seed, "perturbations": perturbations, "genes": genes, "length": length}
    if folder.exists():
        stated = folder / SIMULATED_FILE
        if not stated.is_file() or json.loads(stated.read_text())["options"] != options:
            raise InputError(f"{folder}: holds something else than these simulated data; delete it or choose another --workdir")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        _write(temporary, options)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write(folder: Path, options: dict[str, int]) -> None:
    p, g, length = options["perturbations"], options["genes"], options["length"]
    rng = np.random.default_rng(options["seed"])
    read_out = min(3 * p // 4, g // 2)  # TFs that are read out themselves
    bases, latent = _promoters(rng, p + g - read_out, length)
    tf, gene = np.arange(p), rng.permutation(np.r_[:read_out, p : p + g - read_out])
    rotation = np.linalg.qr(rng.standard_normal((_MOTIFS, _MOTIFS)))[0]
    signal = latent[tf] @ rotation @ latent[gene].T * (_SIGNAL / _MOTIFS**0.5)
    expected = rng.normal(0, _GENE_MEAN, g) + signal
    values = (expected + rng.normal(0, _NOISE, expected.shape)).astype(np.float32)
    attainable = {
        "centered_pearson": _mean_correlation(values, expected),
        "rmse": float(np.sqrt(np.mean((values - expected) ** 2, 1)).mean()),
    }
    ids = [f"ENSG{90_000_000_001 + i}" for i in range(len(bases))]
    names = [f"SIMTF{i + 1:04d}" for i in tf]
    tf_ids, gene_ids = ids[:p], [ids[i] for i in gene]
    numbers = [[format(x, ".6g") for x in row] for row in values.tolist()]
    _csv(folder / f"targets_{p}.csv", ["gene_name", "gene_id", *gene_ids], ([*head, *row] for *head, row in zip(names, tf_ids, numbers)))
    _csv(folder / f"targets_{p}_overlap.csv", ["", *gene_ids], ([name, *row] for name, row in zip(names, numbers)))
    (folder / "gene_index.txt").write_text("\n".join(gene_ids) + "\n")
    texts = [_BASES[row].tobytes().decode() for row in bases]
    place = ["chrom", "tss", "strand", "sequence"]
    tf_rows = ([names[i], ids[i], "simulated", i + 1, "+", texts[i]] for i in tf)
    _csv(folder / "tf_sequences.csv", ["gene_name", "gene_id", *place], tf_rows)
    _csv(folder / "gene_sequences.csv", ["gene_id", *place], ([ids[i], "simulated", i + 1, "+", texts[i]] for i in gene))
    nt, hyena = (_projected(rng, bases, *_PROJECTIONS[name]) for name in ("nt", "hyena"))
    for kind, rows, of in (("tf", tf, tf_ids), ("gene", gene, gene_ids)):
        np.save(folder / f"NTv2_50m_{kind}_embeddings.npy", nt[rows])
        np.save(folder / f"NTv2_50m_{kind}_ids.npy", np.array(of))
    np.save(folder / "hyenadna_tf_embeddings_mean.npy", hyena[tf])
    (folder / "hyenadna_tf_gene_index.txt").write_text("\n".join(tf_ids))
    about = "SIMULATED sequences and values; the embeddings are random projections of k-mer counts, not of any language model"
    (folder / SIMULATED_FILE).write_text(json.dumps({"about": about, "options": options, "attainable": attainable}, indent=2) + "\n")


def _promoters(rng: np.random.Generator, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, length) bases 0 ... 3 and (n, motifs) standardised motif counts."""
    bases = rng.integers(0, 4, (n, length), np.uint8)
    motifs = rng.integers(0, 4, (_MOTIFS, _MOTIF_LENGTH), np.uint8)
    slots = length // _SLOT
    most = 2 * slots // (3 * _MOTIFS)
    counts = rng.integers(0, most + 1, (n, _MOTIFS))
    # The first counts[0] slots of a random order take motif 0, the next counts[1] motif 1, ...
    order = rng.random((n, slots)).argsort(1)
    motif = (np.arange(slots)[:, None] >= counts.cumsum(1)[:, None, :]).sum(-1)
    row, rank = np.nonzero(motif < _MOTIFS)
    bases[row[:, None], (order[row, rank] * _SLOT)[:, None] + np.arange(_MOTIF_LENGTH)] = motifs[motif[row, rank]]
    return bases, (counts - most / 2) / np.sqrt(most * (most + 2) / 12)


def _projected(rng: np.random.Generator, bases: np.ndarray, k: int, width: int) -> np.ndarray:
    """float32 (n, width): k-mer counts, less the mean of a uniform sequence, times a random matrix; of the size of real embeddings."""
    n, length = bases.shape
    codes = np.lib.stride_tricks.sliding_window_view(bases, k, axis=1) @ 4 ** np.arange(k)
    counts = np.bincount((np.arange(n)[:, None] * 4**k + codes).ravel(), minlength=n * 4**k).reshape(n, 4**k)
    projection = rng.normal(0, 0.1 / length**0.5, (4**k, width))
    return ((counts - (length - k + 1) / 4**k) @ projection).astype(np.float32)


def _mean_correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x - x.mean(1, keepdims=True) for x in (a.astype(np.float64), b))
    return float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).mean())


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
