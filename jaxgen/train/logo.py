"""Figures of what bases matter: sequence logos, with a heat map of the effect of every mutation below."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from jaxgen.train.plots import new_figure

COLOURS = {"A": "#109648", "C": "#255C99", "G": "#F7B32B", "T": "#D62839"}  # the usual ones of sequence logos
_MOST_SHOWN = 200  # bases of one figure
_MARGIN = 0.04  # of a letter's cell, on either side


@cache
def _glyph(letter: str) -> Any:
    """The outline of a letter, stretched to the unit square."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath

    outline = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    low, high = outline.vertices.min(0), outline.vertices.max(0)
    return Path((outline.vertices - low) / (high - low), outline.codes)


def draw_logo(ax: Any, sequence: str, heights: np.ndarray, first: int = 1) -> None:
    """Letters of `sequence` at first, first + 1, ..., each as high as its value, upside down below zero; none where it is NaN or no base.

    Args:
        heights: (len(sequence),).
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    letters, known = np.array(list(sequence)), np.isfinite(heights) & (heights != 0)
    for letter, colour in COLOURS.items():
        at = np.flatnonzero((letters == letter) & known)
        if not len(at):
            continue
        glyph = _glyph(letter)
        # One compound path for all of a kind: a path for each would make figures of long sequences slow.
        x = first + at[:, None] - 0.5 + _MARGIN + (1 - 2 * _MARGIN) * glyph.vertices[:, 0]
        vertices = np.stack([x, heights[at][:, None] * glyph.vertices[:, 1]], -1).reshape(-1, 2)
        ax.add_patch(PathPatch(Path(vertices, np.tile(glyph.codes, len(at))), facecolor=colour, linewidth=0))
    ax.axhline(0, color="#777777", linewidth=0.6)
    extent = np.abs(heights[known]).max(initial=1e-12) * 1.08
    ax.set(xlim=(first - 0.5, first + len(sequence) - 0.5), ylim=(min(0, heights[known].min(initial=0)) * 1.08 - 0.02 * extent, extent))
    if (heights[known] > 0).sum() == 0:
        ax.set(ylim=(-extent, 0.02 * extent))


def most_important(scores: np.ndarray, shown: int = _MOST_SHOWN) -> slice:
    """The `shown` neighbouring positions of (positions,) scores whose absolute values add up to most; NaN counts nothing."""
    if len(scores) <= shown:
        return slice(0, len(scores))
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(np.abs(scores), posinf=0.0))])
    start = int((total[shown:] - total[:-shown]).argmax())
    return slice(start, start + shown)


def importance_figure(
    sequence: str, logos: Mapping[str, np.ndarray], effects: np.ndarray | None, title: str, unit: str, first: int = 1
) -> Any:
    """A logo for every kind of score, and a heat map of mutations under them; of long sequences the 200 bases that matter most.

    Args:
        sequence: letters.
        logos: what is scored -> (len(sequence),) importance.
        effects: (len(sequence), 4) change of the output with A, C, G, T; None for no heat map.
        title: what is explained.
        unit: of scores and effects.
        first: number of the first base.
    """
    part = most_important(next(iter(logos.values())))
    whole, n = len(sequence), part.stop - part.start
    if n < whole:
        title = f"{title}, bases {first + part.start:,} to {first + part.stop - 1:,} of {whole:,}"
    rows = len(logos) + (effects is not None)
    ratios = [3.0] * len(logos) + [1.6] * (effects is not None)
    figure, axes = new_figure(1, rows, max(6.0, 0.11 * n + 1.8), 1.9, sharex=True, height_ratios=ratios)
    for ax, (name, heights) in zip(axes[:, 0], logos.items()):
        draw_logo(ax, sequence[part], np.asarray(heights, np.float64)[part], first + part.start)
        ax.set(ylabel=f"{name}\n({unit})")
    if effects is not None:
        ax, values = axes[-1, 0], np.asarray(effects, np.float64)[part].T
        extent = max(float(np.nanmax(np.abs(values), initial=0)), 1e-12)
        left, right = first + part.start - 0.5, first + part.stop - 0.5
        ax.grid(visible=False)
        ax.set_facecolor("#DDDDDD")  # shows where there is no effect to know
        image = ax.imshow(
            np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-extent, vmax=extent, aspect="auto", extent=(left, right, 3.5, -0.5)
        )
        ax.set_yticks(range(4), list("ACGT"))
        ax.set(ylabel="mutated to")
        figure.colorbar(image, ax=ax, label=f"change\n({unit})", pad=0.01)
    axes[0, 0].set(title=title)
    axes[-1, 0].set(xlabel="position (base)")
    return figure
