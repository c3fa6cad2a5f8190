"""The page a person looks at after a run: `report/index.html` (one file, images inside), `report.md` and the PNGs."""

import base64
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxgen.train import plots
from jaxgen.train.logging import write_atomic

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .9rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } .warning { background: #fff3cd; padding: .5rem 1rem }
"""


def write_report(
    workdir: epath.PathLike,
    history: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "jaxgen run",
    loss_label: str = "loss",
    best_step: int | None = None,
    simulated: bool = False,
) -> list[epath.Path]:
    """Writes `workdir/report` and returns the files.

    Args:
      workdir: the run's directory, local or `gs://`.
      history: records of `metrics.jsonl` (`logging.read_history`); split `train` with `loss` and `learning_rate`, others with `loss`.
      predictions: split -> (predictions, targets) of all its examples. Integer targets make it a classification.
      class_names: names of the classes in label order; default: their numbers.
      output_names: names of the regression outputs, best with their units; default: "value", or their numbers.
      metrics: split -> name -> value for the table, as in `result.json`; default: the last record of each split but `train`.
      title: what was run.
      loss_label: name and unit of the loss, such as "cross entropy (nats)".
      best_step: the step whose checkpoint was selected.
      simulated: says "SIMULATED DATA" in every title.
    """
    title = f"{title}, SIMULATED DATA" if simulated else title
    notes: list[str] = []
    figures = [("training", plots.training(history, title, loss_label, best_step))]
    for split, (values, targets) in (predictions or {}).items():
        figures += _split_figures(split, np.asarray(values), np.asarray(targets), class_names, output_names, simulated, notes)
    images = {name: plots.png(figure) for name, figure in figures if figure is not None}
    table = metrics if metrics is not None else _last_metrics(history)
    folder = epath.Path(workdir) / "report"
    files = {f"{name}.png": image for name, image in images.items()}
    files |= {"report.md": markdown_page(title, table, images, notes), "index.html": html_page(title, table, images, notes)}
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]


def _split_figures(
    split: str,
    values: np.ndarray,
    targets: np.ndarray,
    class_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    simulated: bool,
    notes: list[str],
) -> Iterator[tuple[str, Any]]:
    title = f"{split}, SIMULATED DATA" if simulated else split
    finite = np.asarray(np.isfinite(values.astype(np.float64)).all(axis=tuple(range(1, values.ndim))))
    if not finite.all():
        notes.append(f"{split}: {(~finite).sum():,} of {len(finite):,} predictions are not finite, so its figures are left out.")
    elif not len(values):
        notes.append(f"{split}: no examples.")
    elif np.issubdtype(targets.dtype, np.integer):
        labels = targets.reshape(-1)
        names = [str(name) for name in class_names or range(values.shape[1])]
        yield f"{split}_ranking", plots.ranking(values, labels, names, title)
        yield f"{split}_confusion", plots.confusion(values, labels, names, title)
        yield f"{split}_calibration", plots.calibration(values, labels, title)
    else:
        values, targets = (x.reshape(len(x), -1).astype(np.float64) for x in (values, targets))
        names = output_names or (["value"] if values.shape[1] == 1 else [f"output {k}" for k in range(values.shape[1])])
        yield f"{split}_scatter", plots.scatter(values, targets, names, title)


def _last_metrics(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    skip = {"step", "split", "time"}
    last = {record["split"]: record for record in history if record["split"] != "train"}
    return {split: {name: value for name, value in record.items() if name not in skip} for split, record in last.items()}


def _rows(table: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Header and rows: a metric per row, a split per column."""
    names = dict.fromkeys(name for values in table.values() for name in values)

    def cell(value: float | None) -> str:
        return "" if value is None else "NaN" if math.isnan(value) else f"{value:.4f}"

    return [["metric", *table], *([name, *(cell(values.get(name)) for values in table.values())] for name in names)] if names else []


def _heading(name: str) -> str:
    return name.replace("_", ": ", 1)


def markdown_page(title: str, table: Mapping[str, Mapping[str, float]], images: Mapping[str, bytes], notes: Sequence[str]) -> str:
    rows = _rows(table)
    lines = [f"# {title}", ""]
    lines += [f"**{note}**\n" for note in notes]
    for i, row in enumerate(rows):
        lines.append(f"| {' | '.join(row)} |")
        if i == 0:
            lines.append("|---" + "|---:" * (len(row) - 1) + "|")
    for name in images:
        lines += ["", f"## {_heading(name)}", "", f"![{_heading(name)}]({name}.png)"]
    return "\n".join(lines) + "\n"


def html_page(title: str, table: Mapping[str, Mapping[str, float]], images: Mapping[str, bytes], notes: Sequence[str]) -> str:
    escape = html.escape
    rows = _rows(table)
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f'<p class="warning">{escape(note)}</p>' for note in notes]
    if rows:
        cells = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for row, tag in zip(rows, ["th"] + ["td"] * len(rows))]
        body.append("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>")
    for name, image in images.items():
        heading = escape(_heading(name))
        body.append(f'<h2>{heading}</h2><img alt="{heading}" src="data:image/png;base64,{base64.b64encode(image).decode()}">')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
