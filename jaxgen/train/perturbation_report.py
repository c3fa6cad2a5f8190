"""What the TF-perturbation benchmark leaves: tables and figures of every method, in the published files, and the comparison of all."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxgen.train import perturbation_metrics as metrics
from jaxgen.train import perturbation_plots
from jaxgen.train.logging import write_atomic, write_json
from jaxgen.train.plots import png
from jaxgen.train.report import html_page, markdown_page


@dataclasses.dataclass(frozen=True)
class Truth:
    """What was measured, or simulated: (P,) ids, (G,) genes, float32 (P, G) targets with NaN for missing."""

    ids: Sequence[str]
    genes: Sequence[str]
    targets: np.ndarray
    simulated: bool = False


@dataclasses.dataclass(frozen=True)
class Scored:
    """One method with its out-of-fold predictions and their metrics.

    Attributes:
      name: of the method; `published`: its name in the published files.
      predictions: float32 (P, G).
      fitted: float32 (P, G), predictions of training rows, or None.
      rows: metric -> (P,) values.
      gene_pearson: (G,).
      intervals: metric -> mean over perturbations with its confidence interval.
      gain: centred Pearson less that of the mean response, over perturbations.
      seconds: that the folds took.
      about: what else goes into its summary.
    """

    name: str
    published: str
    predictions: np.ndarray
    fitted: np.ndarray | None
    rows: Mapping[str, np.ndarray]
    gene_pearson: np.ndarray
    intervals: Mapping[str, metrics.Interval]
    gain: metrics.Interval
    seconds: float
    about: Mapping[str, Any]

    def means(self) -> dict[str, float]:
        """All metrics: means over perturbations, and `gene_pearson` over genes."""
        values = {name: interval.mean for name, interval in self.intervals.items()}
        return values | {"gene_pearson": float(metrics.mean_of_finite(self.gene_pearson))}


def score(
    truth: Truth,
    name: str,
    published: str,
    predictions: np.ndarray,
    fitted: np.ndarray | None,
    *,
    baseline: Scored | None,
    top_k: int,
    draws: int,
    seed: int,
    empty: float = math.nan,
    seconds: float = 0.0,
    about: Mapping[str, Any] | None = None,
) -> Scored:
    """All metrics of one method.

    Args:
      baseline: the mean response; None when it is this one.
      top_k: genes of `metrics.top_k_overlap`.
      draws, seed: of the bootstrap.
      empty: errors of perturbations without any value.
    """
    rows = metrics.per_perturbation(truth.targets, predictions, empty)
    rows[f"top{top_k}_overlap"] = metrics.top_k_overlap(truth.targets, predictions, top_k)
    intervals = {metric: metrics.bootstrap(values, draws, seed) for metric, values in rows.items()}
    gain = rows["centered_pearson"] - (baseline.rows if baseline else rows)["centered_pearson"]
    gene_pearson = metrics.per_gene_pearson(truth.targets, predictions)
    return Scored(
        name, published, predictions, fitted, rows, gene_pearson, intervals, metrics.bootstrap(gain, draws, seed), seconds, about or {}
    )


def write_method(folder: epath.PathLike, truth: Truth, scored: Scored, n_folds: int, *, stem: str, clip: bool, figures: bool) -> None:
    """The published files of one method: predictions (Parquet), metrics (CSV, JSON), summary and figures.

    Args:
      stem: the part of `metrics_{stem}_5fold.json` that names the method.
      clip: figures show [-1, 1] only.
      figures: draw them.
    """
    folder, name = epath.Path(folder), scored.published
    write_atomic(folder / f"predictions_{name}.parquet", parquet(truth.ids, truth.genes, scored.predictions))
    rows = {"raw_mse" if metric == "mse" else metric: values for metric, values in scored.rows.items()} | {"mse": scored.rows["mse"]}
    write_atomic(folder / "metrics_per_perturbation.csv", _csv("perturbation", truth.ids, rows))
    write_atomic(folder / "metrics_per_gene.csv", _csv("gene", truth.genes, {"pearson": scored.gene_pearson}))
    per_pert = {f"{metric}_per_pert": values for metric, values in rows.items()}
    means = {metric: metrics.mean_of_finite(values) for metric, values in rows.items()}
    write_json(folder / f"metrics_{stem}_{n_folds}fold.json", per_pert | {f"{metric}_mean": mean for metric, mean in means.items()})
    interval = scored.intervals["centered_pearson"]
    confidence = {"pearson_mean": interval.mean, "pearson_mean_ci_lower": interval.low, "pearson_mean_ci_upper": interval.high}
    write_json(folder / f"ci_summary_{stem}_{n_folds}fold.json", confidence)
    summary = {
        "model_name": name,
        "cv_method": f"{n_folds}fold",
        "P": len(truth.ids),
        "G": len(truth.genes),
        "n_tfs": len(truth.ids),
        "n_genes": len(truth.genes),
        "simulated": truth.simulated,
        **{f"mean_{metric}": mean for metric, mean in means.items()},
        "mean_gene_pearson": scored.means()["gene_pearson"],
        "metrics": {f"{metric}_mean": mean for metric, mean in means.items()},
        "gain_over_mean_response": scored.gain._asdict(),
        "timings_seconds": {"training": scored.seconds},
        **scored.about,
    }
    write_json(folder / "summary.json", summary)
    mark = ", SIMULATED DATA" if truth.simulated else ""
    if not figures:
        return
    for file, values, what in (("pred_vs_gt", scored.predictions, "held out"), ("pred_vs_gt_train", scored.fitted, "training")):
        if values is not None:
            figure = perturbation_plots.predicted_against_measured(truth.targets, values, f"{scored.name}, {what}{mark}", clip)
            if figure is not None:
                write_atomic(folder / f"{file}.png", png(figure))


def write_comparison(
    workdir: epath.PathLike, truth: Truth, methods: Sequence[Scored], title: str, notes: Sequence[str], figures: bool
) -> str:
    """`comparison.csv`, `.json` and `.md`, and (`figures`) `report/`; returns the table as text."""
    folder = epath.Path(workdir)
    records = [_record(method) for method in methods]
    write_atomic(folder / "comparison.csv", _table_csv(records))
    write_json(folder / "comparison.json", {"title": title, "notes": notes, "methods": {record["method"]: record for record in records}})
    table = _table_markdown(records)
    write_atomic(folder / "comparison.md", f"# {title}\n\n{table}\n{''.join(f'- {note}{chr(10)}' for note in notes)}")
    if not figures:
        return table
    mark = "SIMULATED DATA" if truth.simulated else ""
    pearson = {method.name: method.rows["centered_pearson"] for method in methods}
    drawn = {
        "centred Pearson per perturbation": perturbation_plots.violins(pearson, "centred Pearson of a perturbation, over genes", mark),
        "Pearson per gene": perturbation_plots.violins(
            {method.name: method.gene_pearson for method in methods}, "Pearson of a gene, over perturbations", mark
        ),
        "changes": perturbation_plots.maps(truth.targets, {method.name: method.predictions for method in methods}, mark),
    }
    images = {name.replace(" ", "_"): png(figure) for name, figure in drawn.items() if figure is not None}
    columns = {method.name: method.means() for method in methods}
    pages = {"report.md": markdown_page(title, columns, images, notes), "index.html": html_page(title, columns, images, notes)}
    for name, content in ({f"{name}.png": image for name, image in images.items()} | pages).items():
        write_atomic(folder / "report" / name, content)
    return table


def _record(method: Scored) -> dict[str, Any]:
    """One line of the comparison."""
    interval = method.intervals["centered_pearson"]
    values = method.means()
    return {
        "method": method.name,
        "centered_pearson": interval.mean,
        "ci_lower": interval.low,
        "ci_upper": interval.high,
        "gain_over_mean": method.gain.mean,
        "gain_ci_lower": method.gain.low,
        "gain_ci_upper": method.gain.high,
        **{name: value for name, value in values.items() if name != "centered_pearson"},
        "seconds": method.seconds,
    }


def _table_csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _table_markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """What a person compares; everything else is in the CSV."""
    overlap = next(name for name in records[0] if name.startswith("top"))
    head = ["method", "centred Pearson (95 % CI)", "above mean response (95 % CI)", "Pearson per gene", "RMSE", "MAE", overlap, "s"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for r in records:
        gain = f"{r['gain_over_mean']:+.4f} ({r['gain_ci_lower']:+.4f} to {r['gain_ci_upper']:+.4f})" if r["method"] != "mean" else ""
        cells = [r["method"], f"{r['centered_pearson']:.4f} ({r['ci_lower']:.4f} to {r['ci_upper']:.4f})", gain]
        cells += [f"{r[name]:.4f}" for name in ("gene_pearson", "rmse", "mae", overlap)]
        lines.append(f"| {' | '.join([*cells, format(r['seconds'], '.1f')])} |")
    return "\n".join(lines) + "\n"


def _csv(index: str, ids: Sequence[str], columns: Mapping[str, np.ndarray]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([index, *columns])
    writer.writerows(
        [name, *("" if math.isnan(x) else x for x in row)] for name, row in zip(ids, np.stack(list(columns.values()), 1).tolist())
    )
    return text.getvalue()


def parquet(ids: Sequence[str], genes: Sequence[str], values: np.ndarray) -> bytes:
    """float32 (P, G) as a Parquet file that pandas reads as a frame with `ids` as its index and `genes` as its columns."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    index = "__index_level_0__"
    text = {"pandas_type": "unicode", "numpy_type": "object"}
    columns = [{"name": gene, "field_name": gene, "pandas_type": "float32", "numpy_type": "float32", "metadata": None} for gene in genes]
    pandas = {
        "index_columns": [index],
        "column_indexes": [{"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}],
        "columns": [*columns, {"name": None, "field_name": index, **text, "metadata": None}],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    arrays = [pa.array(np.ascontiguousarray(column, np.float32)) for column in values.T]
    table = pa.table([*arrays, pa.array(list(ids), pa.string())], [*genes, index]).replace_schema_metadata({"pandas": json.dumps(pandas)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
