"""The tables and figures of a benchmark: models on tasks over seeds, with baselines, published scores and paired tests beside them."""

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from etils import epath
from scipy import stats

from jaxgen.train.logging import write_atomic, write_json
from jaxgen.train.plots import new_figure, png


@dataclass(frozen=True)
class Score:
    """One finished run: test metrics, the same on the test rows that the training split does not hold, and what it cost."""

    model: str
    task: str
    seed: int
    metrics: Mapping[str, float]
    clean: Mapping[str, float]
    nan_steps: int
    seconds: float


@dataclass(frozen=True)
class TaskFacts:
    """What stands beside every score of a task.

    Attributes:
      select: the metric of the table.
      category: for the summary by kind of task.
      baselines: name -> test metrics ("majority", "k-mer", "CNN", of which the last is the mean over seeds).
      leaks: `Leaks.record()`.
      published: model -> ((source, value), ...), in the metric `select`.
      notes: differences from the public files.
    """

    select: str
    category: str
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    leaks: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """A model on a task over seeds."""

    task: str
    model: str
    metric: str
    n: int
    mean: float
    std: float
    clean_mean: float
    nan_steps: int
    seconds: float
    majority: float
    kmer: float
    cnn: float
    published: float
    source: str

    @property
    def difference(self) -> float:
        """Ours minus the published score."""
        return self.mean - self.published


def summarise(scores: Sequence[Score], facts: Mapping[str, TaskFacts]) -> list[Line]:
    """One line per task and model, in the order in which they come; std is that of a sample (NaN for one seed)."""
    lines = []
    for task, model in dict.fromkeys((s.task, s.model) for s in scores):
        fact = facts[task]
        runs = [s for s in scores if (s.task, s.model) == (task, model)]
        values, clean = (
            np.array([m.get(fact.select, math.nan) for m in which]) for which in ([r.metrics for r in runs], [r.clean for r in runs])
        )
        source, value = (list(fact.published.get(model, ())) or [("", math.nan)])[0]
        majority, kmer, cnn = (fact.baselines.get(name, {}).get(fact.select, math.nan) for name in ("majority", "k-mer", "CNN"))
        lines.append(
            Line(
                task=task,
                model=model,
                metric=fact.select,
                n=len(runs),
                mean=float(values.mean()),
                std=float(values.std(ddof=1)) if len(runs) > 1 else math.nan,
                clean_mean=float(clean.mean()),
                nan_steps=sum(r.nan_steps for r in runs),
                seconds=float(np.mean([r.seconds for r in runs])),
                majority=majority,
                kmer=kmer,
                cnn=cnn,
                published=value,
                source=source,
            )
        )
    return lines


def paired_tests(scores: Sequence[Score], facts: Mapping[str, TaskFacts]) -> list[dict[str, Any]]:
    """Paired t-tests between models over the (task, seed) pairs that both have, p-values corrected by Holm's method.

    A test with a NaN score has no p-value, but counts for the correction of the others.
    """
    values = {(s.model, s.task, s.seed): s.metrics.get(facts[s.task].select, math.nan) for s in scores}
    models = list(dict.fromkeys(s.model for s in scores))
    tests = []
    for first, second in itertools.combinations(models, 2):
        pairs = [(task, seed) for model, task, seed in values if model == first and (second, task, seed) in values]
        a, b = (np.array([values[model, *pair] for pair in pairs]) for model in (first, second))
        if len(pairs) > 1:
            p = float(stats.ttest_rel(a, b).pvalue) if np.ptp(a - b) != 0 else float(not np.any(a - b))
            tests.append({"first": first, "second": second, "pairs": len(pairs), "difference": float((a - b).mean()), "p": p})
    corrected = 0.0
    for rank, test in enumerate(sorted(tests, key=lambda t: (math.isnan(t["p"]), t["p"]))):
        corrected = max(corrected, min(1.0, test["p"] * (len(tests) - rank)))
        test["p_holm"] = math.nan if math.isnan(test["p"]) else corrected
    return tests


def average_ranks(lines: Sequence[Line]) -> tuple[dict[str, float], float, int]:
    """(mean rank of every model over the tasks that all of them have, best = 1; Nemenyi's critical difference at 5 %; tasks)."""
    models = list(dict.fromkeys(line.model for line in lines))
    table = {(line.task, line.model): -math.inf if math.isnan(line.mean) else line.mean for line in lines}  # no score is the last rank
    tasks = [t for t in dict.fromkeys(line.task for line in lines) if all((t, m) in table for m in models)]
    if len(models) < 2 or not tasks:
        return {}, math.nan, len(tasks)
    ranks = np.mean([stats.rankdata([-table[task, model] for model in models]) for task in tasks], axis=0)
    k = len(models)
    difference = stats.studentized_range.ppf(0.95, k, np.inf) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * len(tasks)))
    return dict(zip(models, map(float, ranks))), float(difference), len(tasks)


def write_benchmark(folder: epath.PathLike, scores: Sequence[Score], facts: Mapping[str, TaskFacts]) -> list[Line]:
    """Writes runs.csv, table.{csv,md,tex}, tests.csv, leaks.csv, benchmark.json and the figures; returns the lines of the table."""
    folder = epath.Path(folder)
    lines, tests = summarise(scores, facts), paired_tests(scores, facts)
    ranks, critical, tasks = average_ranks(lines)
    records = [_record(line) for line in lines]
    write_atomic(folder / "runs.csv", csv_text([_run(s, facts[s.task].select) for s in scores]))
    write_atomic(folder / "table.csv", csv_text(records))
    write_atomic(folder / "table.md", markdown(lines, facts))
    write_atomic(folder / "table.tex", latex(lines))
    write_atomic(folder / "tests.csv", csv_text(tests))
    write_atomic(folder / "leaks.csv", csv_text([{"task": task, **fact.leaks} for task, fact in facts.items() if fact.leaks]))
    write_json(
        folder / "benchmark.json",
        {"table": records, "tests": tests, "mean_ranks": ranks, "critical_difference": critical, "tasks_ranked": tasks},
    )
    figures = {
        "scores": _scores_figure(lines),
        "ranks": _ranks_figure(ranks, critical, tasks),
        "categories": _categories_figure(lines, facts),
    }
    for name, figure in figures.items():
        if figure is not None:
            write_atomic(folder / f"{name}.png", png(figure))
    return lines


def markdown(lines: Sequence[Line], facts: Mapping[str, TaskFacts]) -> str:
    """The table for people, with what to know of every task below it."""
    text = [
        "| task | model | metric | n | test | without leaks | majority | k-mer | CNN | published | difference | NaN steps | s per run |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        beside = " | ".join(map(number, (line.clean_mean, line.majority, line.kmer, line.cnn, line.published, line.difference)))
        cells = (
            line.task,
            line.model,
            line.metric,
            str(line.n),
            with_spread(line.mean, line.std),
            beside,
            str(line.nan_steps),
            f"{line.seconds:.0f}",
        )
        text.append(f"| {' | '.join(cells)} |")
    sources = "; ".join(sorted({line.source for line in lines} - {""})) or "none"
    text.append("\nMean ± standard deviation over n seeds, on the whole test split.")
    text.append(f"Published scores, of larger models with other protocols: {sources}.\n")
    for task, fact in facts.items():
        leaks = fact.leaks
        known = [f"{leaks['near']:.0f} of {leaks['test_rows']:.0f} test rows are in train or dev, or nearly"] if leaks else []
        majority = fact.baselines.get("majority", {}).get("accuracy", math.nan)
        told = [*([] if math.isnan(majority) else [f"accuracy of the majority class {number(majority)}"]), *known, *fact.notes]
        text.append(f"- {task}{': ' * bool(told)}{'; '.join(told)}")
    return "\n".join(text) + "\n"


def latex(lines: Sequence[Line]) -> str:
    """Tasks by models, the best of a row in bold."""
    models = list(dict.fromkeys(line.model for line in lines))
    table = {(line.task, line.model): line for line in lines}

    def escaped(name: str) -> str:
        return name.replace("_", r"\_")

    text = [rf"\begin{{tabular}}{{l{'c' * len(models)}}}", r"\toprule", " & ".join(["task", *map(escaped, models)]) + r" \\", r"\midrule"]
    for task in dict.fromkeys(line.task for line in lines):
        row = [table.get((task, model)) for model in models]
        best = max((line.mean for line in row if line is not None and not math.isnan(line.mean)), default=math.nan)
        cells = []
        for line in row:
            cell = "--" if line is None else with_spread(line.mean, line.std).replace("±", r"$\pm$")
            cells.append(rf"\textbf{{{cell}}}" if line is not None and line.mean == best else cell)
        text.append(" & ".join([escaped(task), *cells]) + r" \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}", ""])


def number(value: float) -> str:
    """A score for a table; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.3f}"


def with_spread(mean: float, std: float) -> str:
    """The same with its standard deviation, unless that is NaN."""
    return number(mean) if math.isnan(std) else f"{number(mean)} ± {number(std)}"


def _record(line: Line) -> dict[str, Any]:
    return {name: getattr(line, name) for name in (*Line.__dataclass_fields__, "difference")}


def _run(score: Score, select: str) -> dict[str, Any]:
    record = {"model": score.model, "task": score.task, "seed": score.seed, "metric": select, "score": score.metrics.get(select, math.nan)}
    return record | {"without_leaks": score.clean.get(select, math.nan), "nan_steps": score.nan_steps, "seconds": score.seconds}


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """One line per record under the names of the first one; NaN is left empty."""
    if not records:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()} for record in records)
    return out.getvalue()


def _scores_figure(lines: Sequence[Line]) -> Any:
    """Mean and spread of every model, task by task, with the k-mer baseline as a line."""
    tasks, models = (list(dict.fromkeys(getattr(line, name) for line in lines)) for name in ("task", "model"))
    if not lines:
        return None
    figure, axes = new_figure(1, 1, width=max(5.2, 0.35 * len(tasks) * (len(models) + 1)), height=4.6)
    ax = axes[0, 0]
    for i, model in enumerate(models):
        mine = {line.task: line for line in lines if line.model == model}
        at = [j + (i - (len(models) - 1) / 2) * 0.8 / len(models) for j, task in enumerate(tasks) if task in mine]
        shown = [mine[task] for task in tasks if task in mine]
        ax.errorbar(at, [line.mean for line in shown], [0 if math.isnan(line.std) else line.std for line in shown], fmt="o", label=model)
    for j, task in enumerate(tasks):
        baseline = next((line.kmer for line in lines if line.task == task), math.nan)
        ax.hlines(baseline, j - 0.45, j + 0.45, color="grey", linestyle="--", label="k-mer baseline" if j == 0 else None)
    ax.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    ax.set_ylabel(" / ".join(dict.fromkeys(line.metric for line in lines)) + " on the test split")
    ax.legend(fontsize="small")
    return figure


def _ranks_figure(ranks: Mapping[str, float], critical: float, tasks: int) -> Any:
    """Mean ranks; models closer than the critical difference are not told apart by Nemenyi's test."""
    if not ranks:
        return None
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    figure, axes = new_figure(1, 1, width=6, height=1.6 + 0.3 * len(ordered))
    ax = axes[0, 0]
    names, values = zip(*ordered)
    ax.errorbar(values, range(len(names)), xerr=critical / 2, fmt="o", capsize=3)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel(f"mean rank over {tasks} tasks (1 = best); bars that do not overlap differ at 5 % (Nemenyi)")
    return figure


def _categories_figure(lines: Sequence[Line], facts: Mapping[str, TaskFacts]) -> Any:
    """Mean score of every model by category of task."""
    categories = list(dict.fromkeys(facts[line.task].category for line in lines))
    models = list(dict.fromkeys(line.model for line in lines))
    if len(categories) < 2:
        return None
    figure, axes = new_figure(1, 1, width=max(5.2, 0.4 * len(categories) * (len(models) + 1)))
    ax = axes[0, 0]
    for i, model in enumerate(models):
        means = [
            np.mean([line.mean for line in lines if line.model == model and facts[line.task].category == category] or [math.nan])
            for category in categories
        ]
        ax.bar(np.arange(len(categories)) + (i - (len(models) - 1) / 2) * 0.8 / len(models), means, 0.8 / len(models), label=model)
    ax.set_xticks(range(len(categories)), categories)
    ax.set_ylabel("mean test score")
    ax.legend(fontsize="small")
    return figure
