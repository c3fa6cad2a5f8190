import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxgen.train.report import write_report

HISTORY = [{"step": s, "split": "train", "time": 0.0, "loss": 1 / s, "learning_rate": 1e-3} for s in range(1, 60)] + [
    {"step": 30, "split": "valid", "time": 0.0, "loss": 0.2, "mcc": 0.5},
    {"step": 59, "split": "valid", "time": 0.0, "loss": float("nan"), "mcc": 0.6},
]


def classified(classes, n=60):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, classes)).astype(np.float32), rng.integers(0, classes, n).astype(np.int32)


class Images(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.sources.append(dict(attrs)["src"])


def names(files):
    assert all(file.exists() for file in files)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files if file.suffix == ".png")
    return {file.name for file in files}


def test_classification(tmp_path):
    files = write_report(
        tmp_path, HISTORY, {"test": classified(3)}, class_names=["none", "donor", "<acceptor>"], title="a & b", best_step=30
    )
    expected = {"training.png", "test_ranking.png", "test_confusion.png", "test_calibration.png", "report.md", "index.html"}
    assert names(files) == expected == {file.name for file in (tmp_path / "report").iterdir()}
    page = Images()
    page.feed((tmp_path / "report" / "index.html").read_text())
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)  # one file is enough to send
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| mcc | 0.6000 |" in text  # the last record of the split
    assert "| loss | NaN |" in text
    assert all((tmp_path / "report" / name).exists() for name in re.findall(r"\]\((.*?\.png)\)", text))


def test_regression_and_the_given_table(tmp_path):
    x = np.random.default_rng(0).normal(size=(2500, 8))
    files = write_report(tmp_path, [], {"test": (x + 0.1, x), "valid": (x[:9, 0], x[:9, 0])}, metrics={"test": {"pearson": 0.25}})
    assert names(files) == {"test_scatter.png", "valid_scatter.png", "report.md", "index.html"}
    assert "| pearson | 0.2500 |" in (tmp_path / "report" / "report.md").read_text()


def test_simulated_data_is_called_that(tmp_path):
    write_report(tmp_path, HISTORY, title="run", simulated=True)
    assert (tmp_path / "report" / "report.md").read_text().startswith("# run, SIMULATED DATA\n")
    assert "<title>run, SIMULATED DATA</title>" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("classes", [2, 20])
def test_awkward_predictions(tmp_path, classes):
    logits, labels = classified(classes)
    broken = logits.copy()
    broken[3] = np.nan
    empty = np.zeros((0, classes)), np.zeros(0, np.int32)
    files = write_report(
        tmp_path, [], {"one": (logits, np.zeros_like(labels)), "all": (logits, labels), "broken": (broken, labels), "empty": empty}
    )
    found = names(files)
    assert {"one_confusion.png", "all_ranking.png"} <= found
    assert not any(name.startswith(("broken", "empty")) for name in found)
    assert "one_ranking.png" not in found or classes > 2
    assert "1 of 60 predictions are not finite" in (tmp_path / "report" / "report.md").read_text()
