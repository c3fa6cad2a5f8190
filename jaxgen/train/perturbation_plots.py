"""Figures of the TF-perturbation benchmark: predicted against measured changes, correlations per method, maps of changes."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.train.plots import COLOURS, new_figure

_MAP_GENES = 60


def predicted_against_measured(targets: np.ndarray, predictions: np.ndarray, title: str, clip: bool = True) -> Any:
    """Density of all pairs of (P, G), as in the published figures; None when there is no pair.

    Args:
      clip: show pairs within [-1, 1] only.
    """
    x, y = targets.ravel(), predictions.ravel()
    shown = np.isfinite(x) & np.isfinite(y)
    if clip:
        shown &= (np.abs(x) <= 1) & (np.abs(y) <= 1)
    x, y = x[shown].astype(np.float64), y[shown].astype(np.float64)
    if not len(x):
        return None
    figure, axes = new_figure(1, 1, 8, 6, dpi=300)
    ax = axes[0, 0]
    cloud = ax.hexbin(x, y, gridsize=50, bins="log", mincnt=1, cmap="Blues", linewidths=0.1)
    figure.colorbar(cloud, ax=ax, label="pairs of perturbation and gene (log scale)")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    ax.plot([low, high], [low, high], color="red", linestyle="--", alpha=0.7)
    if clip:
        ax.set(xlim=(-1, 1), ylim=(-1, 1))
    r = np.corrcoef(x, y)[0, 1] if x.std() > 0 and y.std() > 0 else 0.0
    ax.set(xlabel="measured change of expression", ylabel="predicted change of expression")
    ax.set_title(f"{title}\nPearson r of all {len(x):,} pairs = {r:.4f}")
    return figure


def violins(values: Mapping[str, np.ndarray], label: str, title: str) -> Any:
    """Distribution over perturbations of one metric, a violin per method, with median and mean."""
    values = {name: x[np.isfinite(x)] for name, x in values.items() if np.isfinite(x).any()}
    if not values:
        return None
    figure, axes = new_figure(1, 1, max(5.0, 1.3 * len(values) + 1.5), 4.6)
    ax, positions = axes[0, 0], np.arange(1, len(values) + 1)
    parts = ax.violinplot(list(values.values()), positions, showextrema=False, showmedians=True, widths=0.8)
    for i, body in enumerate(parts["bodies"]):
        body.set(facecolor=COLOURS[i % len(COLOURS)], alpha=0.5)
    parts["cmedians"].set(color="black", linewidth=1.5)
    ax.plot(positions, [x.mean() for x in values.values()], "o", color="white", markeredgecolor="black", label="average")
    ax.axhline(0, color="#777777", linewidth=1, linestyle=":")
    ax.set_xticks(positions, list(values), rotation=20 if len(values) > 5 else 0)
    ax.set(ylabel=label, title=title)
    ax.legend(frameon=False)
    return figure


def maps(targets: np.ndarray, predictions: Mapping[str, np.ndarray], title: str) -> Any:
    """Measured changes and every method's, for the genes that vary most; perturbations and genes in the order of a leading component."""
    filled = np.nan_to_num(targets.astype(np.float64))
    genes = np.sort(np.argsort(filled.var(0), kind="stable")[-_MAP_GENES:])
    u, _, vt = np.linalg.svd(filled[:, genes] - filled[:, genes].mean(0), full_matrices=False)
    rows, columns = np.argsort(u[:, 0], kind="stable"), genes[np.argsort(vt[0], kind="stable")]
    panels = {"measured": targets, **predictions}
    across = min(3, len(panels))
    figure, axes = new_figure(across, math.ceil(len(panels) / across), 4.2, 3.4, sharex=True, sharey=True)
    limit = max(float(np.nanpercentile(np.abs(targets[np.ix_(rows, columns)]), 99)), 1e-6)
    image = None
    for ax, (name, values) in zip(axes.flat, panels.items()):
        ax.grid(visible=False)
        image = ax.imshow(values[np.ix_(rows, columns)], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        ax.set_title(name, fontsize=10)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    figure.supxlabel(f"the {len(columns)} genes that vary most")
    figure.supylabel("perturbations")
    figure.colorbar(image, ax=axes, label="change of expression", shrink=0.8)
    figure.suptitle(title)
    return figure
