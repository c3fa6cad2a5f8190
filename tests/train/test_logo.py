"""Logos are drawn where and as high as they should be, and become PNG files of sane size."""

import struct

import numpy as np
import pytest

from jaxgen.train import logo, plots


def size(image: bytes) -> tuple[int, int]:
    assert image.startswith(b"\x89PNG")
    return struct.unpack(">II", image[16:24])


def test_letters_are_as_high_as_their_values():
    figure, axes = plots.new_figure()
    heights = np.array([1.0, -2.0, 0.5, np.nan, 3.0, 0.0])
    logo.draw_logo(axes[0, 0], "ACANTG", heights, first=11)
    drawn = {patch.get_facecolor(): patch.get_path().vertices for patch in axes[0, 0].patches}
    assert len(drawn) == 3  # neither N nor the G of height 0
    a, c, t = drawn.values()
    for vertices, columns, low, high in ((a, (11, 13), 0, 1), (c, (12, 12), -2, 0), (t, (15, 15), 0, 3)):
        assert columns[0] - 0.5 <= vertices[:, 0].min()
        assert vertices[:, 0].max() <= columns[1] + 0.5
        np.testing.assert_allclose([vertices[:, 1].min(), vertices[:, 1].max()], [low, high], atol=1e-9)
    low, high = axes[0, 0].get_ylim()
    assert low < -2
    assert high > 3
    assert size(plots.png(figure))[0] > 300


@pytest.mark.parametrize("n", [5, 1000])
def test_figures_of_any_length_stay_readable(n):
    rng = np.random.default_rng(0)
    sequence, effects = "".join(rng.choice(list("ACGT"), n)), rng.normal(size=(n, 4))
    effects[2] = np.nan
    scores = np.where(np.arange(n) // 100 == 7, 5.0, 0.1) * rng.normal(size=n)
    figure = logo.importance_figure(sequence, {"ism": scores, "gradient": scores}, effects, "x", "nats", first=3)
    assert [ax.get_ylabel() for ax in figure.axes[:3]] == ["ism\n(nats)", "gradient\n(nats)", "mutated to"]
    assert figure.axes[2].get_xlabel() == "position (base)"
    if n == 1000:  # the stretch that matters
        low, high = figure.axes[0].get_xlim()
        assert low < 3 + 720
        assert high > 3 + 780
        assert "of 1,000" in figure.axes[0].get_title()
    image = plots.png(figure)
    width, height = size(image)
    assert 500 < width < 3500
    assert 300 < height < 1200
    assert len(image) < 1 << 20


def test_nothing_to_draw_is_an_empty_logo():
    figure = logo.importance_figure("NNN", {"ism": np.full(3, np.nan)}, np.full((3, 4), np.nan), "x", "nats")
    assert size(plots.png(figure))[0] > 300
