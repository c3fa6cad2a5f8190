import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics as sk

from jaxgen.errors import InputError
from jaxgen.train import metrics

CLASSIFICATION = [name for name in metrics.NAMES if name not in {"pearson", "spearman", "r2", "rmse", "mae"}]
REGRESSION = ["pearson", "spearman", "r2", "rmse", "mae"]


@st.composite
def classification(draw, classes=None):
    classes = classes or draw(st.integers(2, 5))
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, draw(st.integers(1, classes)), n)  # often with classes that never occur
    return rng.normal(size=(n, classes)).astype(np.float32), labels.astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(classification())
def test_counts_agree_with_scikit_learn(case):
    logits, labels = case
    predicted = logits.argmax(1)
    ours = metrics.evaluate(["accuracy", "mcc", "f1_macro", "precision_macro", "recall_macro", "cross_entropy"], logits, labels)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    if len(set(labels)) > 1 or len(set(predicted)) > 1:
        assert ours["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, predicted), abs=1e-12)
    for name, function in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
        assert ours[f"{name}_macro"] == pytest.approx(function(labels, predicted, average="macro", zero_division=0))
    expected = -special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean()
    assert ours["cross_entropy"] == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(classification(classes=2))
def test_binary_agrees_with_scikit_learn(case):
    logits, labels = case
    predicted = logits.argmax(1)
    ours = metrics.evaluate(CLASSIFICATION, logits, labels)
    for name, function in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
        assert ours[f"{name}_binary"] == pytest.approx(function(labels, predicted, zero_division=0))
    assert ours["specificity"] == pytest.approx(sk.recall_score(labels, predicted, pos_label=0, zero_division=0))
    if len(set(labels)) == 2:
        score = special.softmax(logits.astype(np.float64), axis=1)[:, 1]
        assert ours["auroc"] == pytest.approx(sk.roc_auc_score(labels, score))
        assert ours["auprc"] == pytest.approx(sk.average_precision_score(labels, score))
    else:
        assert np.isnan([ours["auroc"], ours["auprc"]]).all()


def test_multiclass_auroc_is_the_macro_mean_of_one_against_rest():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 4)), rng.integers(0, 4, 60)
    expected = sk.roc_auc_score(labels, special.softmax(logits, axis=1), multi_class="ovr", average="macro")
    assert metrics.evaluate(["auroc"], logits, labels)["auroc"] == pytest.approx(expected)
    seen = labels != 3  # a class without examples is left out of the mean
    assert np.isfinite(metrics.evaluate(["auroc", "auprc"], logits[seen], labels[seen])["auroc"])


def test_auroc_does_not_saturate():
    logits = np.array([[0, 100.0], [0, 200.0], [0, 300.0]])  # all probabilities round to 1
    assert metrics.evaluate(["auroc"], logits, np.array([0, 0, 1]))["auroc"] == 1.0


@pytest.mark.parametrize(
    ("predicted", "labels", "expected"), [([0, 0], [0, 0], 1.0), ([1, 1], [0, 0], -1.0), ([0, 1], [1, 1], 0.0), ([1, 1], [0, 1], 0.0)]
)
def test_mcc_of_constant_inputs(predicted, labels, expected):
    assert metrics.evaluate(["mcc"], np.eye(2)[predicted], np.array(labels))["mcc"] == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 4), st.sampled_from([0.0, 1e6]), st.integers(0, 2**32 - 1))
def test_regression_agrees_with_scipy_and_scikit_learn(n, outputs, offset, seed):
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(n, outputs)).round(1) + offset
    predictions = (targets + rng.normal(size=(n, outputs))).round(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pearson = [stats.pearsonr(predictions[:, k], targets[:, k])[0] for k in range(outputs)]
        spearman = [stats.spearmanr(predictions[:, k], targets[:, k])[0] for k in range(outputs)]
    if not np.isfinite(pearson).all():
        return  # constant: its own test
    ours = metrics.evaluate(REGRESSION, predictions, targets)
    assert ours["pearson"] == pytest.approx(np.mean(pearson), abs=1e-7)
    assert ours["spearman"] == pytest.approx(np.mean(spearman), abs=1e-9)
    assert ours["r2"] == pytest.approx(sk.r2_score(targets, predictions), rel=1e-6, abs=1e-6)
    assert ours["rmse"] == pytest.approx(sk.root_mean_squared_error(targets, predictions))
    assert ours["mae"] == pytest.approx(sk.mean_absolute_error(targets, predictions))


def test_outputs_without_variance():
    x = np.arange(6.0)
    targets, predictions = np.stack([x, np.ones(6)], 1), np.stack([x, x], 1)
    assert metrics.evaluate(["pearson", "spearman", "r2"], predictions, targets) == {"pearson": 1.0, "spearman": 1.0, "r2": 1.0}
    assert metrics.evaluate(["pearson", "spearman"], np.ones(6), x) == {"pearson": 0.0, "spearman": 0.0}
    assert np.isnan(metrics.evaluate(["pearson"], x, np.ones(6))["pearson"])
    assert metrics.evaluate(["pearson"], x * 1e-200, x)["pearson"] == pytest.approx(1.0)
    last_digit = np.array([0.1 + 0.2, 0.3])
    assert metrics.evaluate(["pearson"], last_digit, np.arange(2.0))["pearson"] == pytest.approx(-1.0)


def test_padding_rows_do_not_count():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    names = [name for name in CLASSIFICATION if "binary" not in name]
    padded = np.concatenate([logits, np.full((5, 3), np.nan)]), np.concatenate([labels, np.zeros(5, int)])
    weight = np.arange(25) < 20
    assert metrics.evaluate(names, *padded, weight) == pytest.approx(metrics.evaluate(names, logits, labels))
    assert metrics.evaluate(["rmse"], padded[0][:, 0], padded[0][:, 0], weight) == {"rmse": 0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_predictions_never_crash(bad):
    logits, labels = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    logits[1, 0] = bad
    values = metrics.evaluate(CLASSIFICATION, logits, labels) | metrics.evaluate(REGRESSION, logits[:, 0], labels)
    assert np.isnan(list(values.values())).all() or bad == np.inf
    assert np.isnan(list(metrics.evaluate(CLASSIFICATION, np.zeros((0, 2)), np.zeros(0, int)).values())).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.evaluate(["mmc"], np.eye(2), np.arange(2)), "did you mean 'mcc'"),
        (lambda: metrics.evaluate(["f1_binary"], np.eye(3), np.arange(3)), "use f1_macro"),
        (lambda: metrics.evaluate(["accuracy"], np.eye(2), np.array([0, 2])), "labels run from 0 to 2, but the model has 2 classes"),
        (lambda: metrics.evaluate(["accuracy"], np.zeros(3), np.zeros(3)), "logits (N, C)"),
        (lambda: metrics.evaluate(["rmse"], np.zeros((3, 1)), np.zeros((3, 2))), "one shape"),
        (lambda: metrics.per_batch("auroc", np.eye(2), np.arange(2), 1), "no definition per batch"),
        (lambda: metrics.larger_is_better("los"), "did you mean 'loss'"),
    ],
)
def test_wrong_use_names_the_remedy(call, words):
    with pytest.raises(InputError) as error:
        call()
    assert words in str(error.value)


def test_direction_of_improvement():
    assert {name for name in (*metrics.NAMES, "loss", "perplexity", "bits_per_token") if not metrics.larger_is_better(name)} == {
        *("cross_entropy", "rmse", "mae", "loss", "perplexity", "bits_per_token")
    }
