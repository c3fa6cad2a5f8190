"""The figures of a report. Matplotlib is imported when the first one is drawn, without a display and without its global state."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxgen.train import metrics

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey by its line styles.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MOST_CURVES = 8  # classes with a curve of their own
_MOST_OUTPUTS = 6  # outputs with a panel of their own
_MOST_CELLS = 12  # classes up to which a confusion matrix is written out


def new_figure(columns: int = 1, rows: int = 1, width: float = 5.2, height: float = 4.2, dpi: int = 110, **options: Any) -> tuple[Any, Any]:
    """A figure and its array of axes (rows, columns), each `width` x `height` inches; `options` as of `Figure.subplots`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=dpi)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a fiftieth of the curve, without the pull of its start; NaNs are passed over."""
    keep = 1.0 - 1.0 / max(1.0, len(values) / 50)
    total = weight = 0.0
    smooth = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smooth[i] = total / weight if weight else np.nan
    return smooth


def _series(history: Sequence[Mapping[str, Any]], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(record["step"], record[name]) for record in history if record["split"] == split and name in record]
    steps, values = zip(*pairs) if pairs else ((), ())
    return np.array(steps), np.array(values, np.float64)


def training(history: Sequence[Mapping[str, Any]], title: str, loss_label: str, best_step: int | None) -> Any:
    """Losses of all splits above the learning rate; None when nothing was logged."""
    steps, loss = _series(history, "train", "loss")
    others = [split for split in dict.fromkeys(record["split"] for record in history) if split != "train"]
    curves = {split: _series(history, split, "loss") for split in others}
    if not len(steps) and not any(len(x) for x, _ in curves.values()):
        return None
    rate_steps, rate = _series(history, "train", "learning_rate")
    rows = 2 if len(rate_steps) else 1
    figure, axes = new_figure(1, rows, 7.5, 3.2, sharex=True, height_ratios=(3, 1)[:rows])
    top = axes[0, 0]
    if len(steps):
        top.plot(steps, loss, color=COLOURS[0], alpha=0.25, linewidth=1, label="train, each record")
        top.plot(steps, _smooth(loss), color=COLOURS[0], linewidth=1.8, label="train, smoothed")
    for i, (split, (x, y)) in enumerate((split, curve) for split, curve in curves.items() if len(curve[0])):
        top.plot(x, y, color=COLOURS[1 + i % 6], linestyle=_STYLES[1 + i % 3], marker="o", markersize=4, label=split)
    if best_step is not None:
        top.axvline(best_step, color="#777777", linewidth=1, linestyle=":", label=f"selected step ({best_step:,})")
    top.set(ylabel=loss_label, title=title)
    top.legend(frameon=False)
    if rows == 2:
        axes[1, 0].plot(rate_steps, rate, color=COLOURS[2])
        axes[1, 0].set(ylabel="learning rate")
        axes[1, 0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes[-1, 0].set(xlabel="optimiser step")
    return figure


def _class_curves(logits: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(class, whether each example has it, score) of the classes that have a curve; only the positive one of two."""
    scores = metrics.class_scores(logits.astype(np.float64))
    for c in [1] if logits.shape[1] == 2 else range(logits.shape[1]):
        if 0 < (labels == c).sum() < len(labels):
            yield c, labels == c, scores[:, c]


def ranking(logits: np.ndarray, labels: np.ndarray, names: Sequence[str], title: str) -> Any:
    """ROC and precision-recall curves side by side; None when the split holds a single class."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    curves = list(_class_curves(logits, labels))
    if not curves:
        return None
    figure, axes = new_figure(2)
    roc, recall = axes[0]
    for i, (c, has, score) in enumerate(curves):
        own = i < _MOST_CURVES  # the others stay a grey crowd
        style = {"color": COLOURS[i % 7], "linestyle": _STYLES[i // 7 % 4]} if own else {"color": "#BBBBBB", "linewidth": 0.8, "zorder": 1}
        false, true, _ = roc_curve(has, score)
        roc.plot(false, true, label=f"{names[c]} (area {roc_auc_score(has, score):.3f})" if own else None, **style)
        precision, found, _ = precision_recall_curve(has, score)
        label = f"{names[c]} (AP {average_precision_score(has, score):.3f}, share {has.mean():.3f})" if own else None
        recall.plot(found, precision, drawstyle="steps-post", label=label, **style)
    roc.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=":", label="chance")
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title=f"{title}: ROC, n = {len(labels):,}")
    recall.set(xlabel="recall", ylabel="precision", title=f"{title}: precision and recall")
    for ax in (roc, recall):
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        ax.legend(frameon=False, loc="lower right" if ax is roc else "lower left", fontsize=8)
    return figure


def confusion(logits: np.ndarray, labels: np.ndarray, names: Sequence[str], title: str) -> Any:
    """The confusion matrix, as counts and as shares of each true class."""
    counts = metrics.confusion_matrix(logits.argmax(1), labels, logits.shape[1])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = max(4.2, 0.45 * len(names))
    figure, axes = new_figure(2, 1, size + 0.6, size)
    for ax, values, form, what in ((axes[0, 0], counts, "{:,}", "examples"), (axes[0, 1], shares, "{:.2f}", "share of the true class")):
        ax.grid(visible=False)
        top = 1.0 if values is shares else max(1, values.max())
        image = ax.imshow(values, cmap="Blues", vmin=0, vmax=top)
        figure.colorbar(image, ax=ax, label=what, shrink=0.8)
        ticks = range(len(names))
        ax.set_xticks(ticks, names, rotation=0 if max(map(len, names)) * len(names) < 30 else 90)
        ax.set_yticks(ticks, names)
        ax.set(xlabel="predicted class", ylabel="true class", title=f"{title}: {what}")
        for (row, column), value in np.ndenumerate(values) if len(names) <= _MOST_CELLS else ():
            ax.text(column, row, form.format(value), ha="center", va="center", color="white" if value > 0.6 * top else "black", fontsize=9)
    return figure


def calibration(logits: np.ndarray, labels: np.ndarray, title: str, bins: int = 10) -> Any:
    """How often the predicted class is right against how sure the model was, in bins of equal width."""
    log_p = metrics.log_softmax(logits.astype(np.float64))
    sure, right = np.exp(log_p.max(1)), log_p.argmax(1) == labels
    which = np.minimum((sure * bins).astype(int), bins - 1)
    sizes = np.bincount(which, minlength=bins)
    used = sizes > 0
    mean_sure = np.bincount(which, sure, bins)[used] / sizes[used]
    mean_right = np.bincount(which, right, bins)[used] / sizes[used]
    error = np.abs(mean_sure - mean_right) @ sizes[used] / sizes.sum()
    figure, axes = new_figure(1, 2, 5.2, 2.9, sharex=True, height_ratios=(3, 1))
    top, below = axes[:, 0]
    top.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=":", label="perfect calibration")
    top.plot(mean_sure, mean_right, color=COLOURS[0], marker="o", label=f"model (expected calibration error {error:.3f})")
    top.set(ylabel="share that is right", ylim=(-0.02, 1.02), title=f"{title}: calibration")
    top.legend(frameon=False, loc="upper left", fontsize=8)
    below.bar((np.arange(bins) + 0.5) / bins, sizes, width=0.9 / bins, color=COLOURS[0])
    below.set(xlabel="probability of the predicted class", ylabel="examples", xlim=(0, 1.02))
    return figure


def scatter(predictions: np.ndarray, targets: np.ndarray, names: Sequence[str], title: str) -> Any:
    """Predicted against measured values, one panel per output; dense clouds as hexagons coloured by count."""
    shown = min(predictions.shape[1], _MOST_OUTPUTS)
    columns = min(shown, 3)
    figure, axes = new_figure(columns, math.ceil(shown / columns), 4.6, 4.4)
    for ax in axes.flat[shown:]:
        ax.set_visible(False)
    for k, ax in zip(range(shown), axes.flat):
        x, y = targets[:, k], predictions[:, k]
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        if len(x) > 2000:
            cloud = ax.hexbin(x, y, gridsize=50, bins="log", mincnt=1, cmap="viridis", linewidths=0.1)
            figure.colorbar(cloud, ax=ax, label="examples", shrink=0.8)
        else:
            ax.scatter(x, y, s=9, color=COLOURS[0], alpha=0.5, linewidths=0)
        ax.plot([low, high], [low, high], color="#777777", linewidth=1, linestyle=":")
        values = metrics.evaluate(["pearson", "spearman"], y, x)
        ax.set(xlabel=f"measured {names[k]}", ylabel=f"predicted {names[k]}")
        ax.set_title(f"r = {values['pearson']:.3f}, ρ = {values['spearman']:.3f}, n = {len(x):,}", fontsize=10)
    figure.suptitle(title if shown == predictions.shape[1] else f"{title} (first {shown} of {predictions.shape[1]} outputs)")
    return figure
