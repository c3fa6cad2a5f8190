"""The tables and the figure of the eQTL probe: classifiers by distance to the start site, with zero-shot scores beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from jaxgen.train.benchmark_report import csv_text, number, with_spread
from jaxgen.train.logging import write_atomic
from jaxgen.train.plots import COLOURS, new_figure, png


@dataclass(frozen=True)
class BucketScores:
    """What the report says of one range of distances.

    Attributes:
      label: such as "0-30 kb".
      train_rows, test_rows: variants.
      c: the C that was chosen; NaN where nothing was fitted.
      decision, hard: AUROC on test of every seed under that C, by decision values and by hard predictions.
      zero_shot: score -> AUROC on test.
    """

    label: str
    train_rows: int
    test_rows: int
    c: float
    decision: Sequence[float]
    hard: Sequence[float]
    zero_shot: Mapping[str, float]


def write_probe(
    folder: epath.PathLike,
    runs: Sequence[Mapping[str, Any]],
    buckets: Sequence[BucketScores],
    title: str,
    notes: Sequence[str],
    attainable: float = math.nan,
) -> str:
    """Writes probe.csv (one line per classifier), probe.md and probe.png; returns the Markdown table.

    Args:
      attainable: AUROC that no method can pass, where the data are simulated.
    """
    folder = epath.Path(folder)
    table = markdown(buckets)
    write_atomic(folder / "probe.csv", csv_text(runs))
    write_atomic(folder / "probe.md", "\n".join([f"# {title}", "", table, "", *(f"- {note}" for note in notes), ""]))
    write_atomic(folder / "probe.png", png(_figure(buckets, title, attainable)))
    return table


def markdown(buckets: Sequence[BucketScores]) -> str:
    """AUROC on test per bucket: mean ± standard deviation over seeds."""
    zero_shot = list(buckets[0].zero_shot)
    head = [
        "distance to TSS",
        "train",
        "test",
        "C",
        "SVM, decision values",
        "SVM, hard predictions",
        *(f"zero-shot {x}" for x in zero_shot),
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for b in buckets:
        cells = [b.label, f"{b.train_rows:,}", f"{b.test_rows:,}", "" if math.isnan(b.c) else f"{b.c:g}"]
        cells += [with_spread(*spread(b.decision)), with_spread(*spread(b.hard)), *(number(b.zero_shot[name]) for name in zero_shot)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation of a sample), NaN where there are too few values."""
    return (float(np.mean(values)) if len(values) else math.nan, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan)


def _figure(buckets: Sequence[BucketScores], title: str, attainable: float) -> Any:
    """Every seed as a point, mean and standard deviation beside it; zero-shot scores as dashes."""
    figure, axes = new_figure(1, 1, width=7.5)
    ax, places = axes[0, 0], np.arange(len(buckets))
    for shift, colour, field in ((-0.15, COLOURS[0], "decision"), (0.15, COLOURS[1], "hard")):
        for place, bucket in zip(places, buckets):
            values = getattr(bucket, field)
            ax.plot([place + shift] * len(values), values, ".", color=colour, alpha=0.5)
        means, stds = zip(*(spread(getattr(bucket, field)) for bucket in buckets))
        name = {"decision": "SVM, decision values", "hard": "SVM, hard predictions"}[field]
        ax.errorbar(places + shift + 0.06, means, np.nan_to_num(stds), fmt="o", capsize=3, color=colour, label=name)
    for colour, score in zip(COLOURS[2:], buckets[0].zero_shot):
        ax.plot(places, [bucket.zero_shot[score] for bucket in buckets], "_", markersize=22, color=colour, label=f"zero-shot {score}")
    ax.axhline(0.5, color="grey", linestyle=":", label="chance")
    if not math.isnan(attainable):
        ax.axhline(attainable, color="grey", linestyle="--", label="attainable")
    ax.set_xticks(places, [bucket.label for bucket in buckets])
    ax.set_xlabel("distance to the nearest transcription start site")
    ax.set_ylabel("AUROC on test")
    ax.set_title(title, fontsize="medium")
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
