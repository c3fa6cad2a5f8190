import json

from jaxgen.train.early_stopping import Selection

NAN = float("nan")


def run(selection, values):
    return [selection.update(value, step) for step, value in enumerate(values)]


def test_best_is_the_first_of_equals_and_never_nan():
    selection = Selection("mcc", larger_is_better=True)
    improved = [first for first, _ in run(selection, [NAN, 0.1, 0.5, 0.5, NAN, 0.4])]
    assert improved == [False, True, True, False, False, False]
    assert (selection.best_step, selection.best_value) == (2, 0.5)


def test_smaller_is_better():
    selection = Selection("loss", larger_is_better=False)
    run(selection, [3.0, 1.0, 2.0])
    assert selection.best_step == 1


def test_patience_counts_evaluations_in_a_row():
    stops = [stop for _, stop in run(Selection("mcc", True, patience=2), [0.1, 0.0, 0.2, NAN, 0.1])]
    assert stops == [False, False, False, False, True]
    assert not any(stop for _, stop in run(Selection("mcc", True), [0.0] * 50))


def test_resumed_run_goes_on_alike():
    values = [0.1, 0.3, NAN, 0.2, 0.4, 0.1]
    whole, first = Selection("mcc", True, 3), Selection("mcc", True, 3)
    expected = run(whole, values)
    begun = run(first, values[:3])
    resumed = Selection.from_dict(json.loads(json.dumps(first.to_dict())))
    assert begun + [resumed.update(value, step + 3) for step, value in enumerate(values[3:])] == expected
    assert resumed == whole
