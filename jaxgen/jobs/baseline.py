"""Score the baselines that a model has to beat: order-k Markov on a genome, a linear model of k-mers on a task."""

import time
from collections.abc import Sequence

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxgen.baselines.kmer import KmerModel
from jaxgen.baselines.markov import MarkovModel
from jaxgen.data.intervals import TiledWindows
from jaxgen.data.tasks import Task
from jaxgen.jobs.tasks import load_task, open_genome
from jaxgen.jobs.training import open_workdir, say, shown
from jaxgen.train import metrics
from jaxgen.train.logging import environment, write_json, write_result


def run(config: ConfigDict) -> int:
    """Baselines of `data.fasta` (split as by the pretrain job) or of `data.task`; writes result.json."""
    if open_workdir(config):
        return 0
    began = time.monotonic()
    results = _markov(config) if config.data.fasta else _kmer(config)
    for split, values in results.items():
        say(f"{split}: {shown(values)}")
    write_json(epath.Path(config.workdir) / "config.json", config.to_dict())
    result = {"job": "baseline", "metrics": results, "seed": config.seed, "wall_seconds": time.monotonic() - began}
    write_result(config.workdir, result | environment())
    return 0


def _markov(config: ConfigDict) -> dict[str, dict[str, float]]:
    """Per-base cross entropy of orders 0 ... `baseline.max_order` on the held-out parts; the training part is what pretraining sees."""
    d = config.data
    genome = open_genome(config)
    names, parts = list(genome.contigs), {}
    for split in ("train", "valid", "test"):
        windows = TiledWindows(genome.contigs, 1, split, d.holdout)
        parts[split] = [
            genome.fetch(names[i], int(low), int(high)) for i, (low, high) in enumerate(zip(windows.lows, windows.highs)) if high > low
        ]
    results: dict[str, dict[str, float]] = {"valid": {}, "test": {}}
    for order in range(config.baseline.max_order + 1):
        model = MarkovModel(order).fit(parts["train"])
        for split, values in results.items():
            values[f"order_{order}_loss_per_base"] = model.loss(parts[split])[0]
    return results


def _kmer(config: ConfigDict) -> dict[str, dict[str, float]]:
    """Metrics of a linear model of k-mers, the inverse strength chosen on the validation split."""
    task = load_task(config)
    predictions = kmer_predictions(task, config.baseline.max_k, config.baseline.strengths)
    return {
        split: metrics.evaluate(task.target.metrics, predictions[name], task.splits[name].targets)
        for name, split in (("dev", "valid"), ("test", "test"))
    }


def kmer_predictions(task: Task, max_k: int, strengths: Sequence[float]) -> dict[str, np.ndarray]:
    """Logits (n, classes), or values (n, outputs), of a linear model of k-mers on `dev` and `test`, the strength chosen on `dev`."""
    train, dev, select = task.splits["train"], task.splits["dev"], task.target.select
    sign = 1 if metrics.larger_is_better(select) else -1

    def score(model: KmerModel) -> float:
        return sign * metrics.evaluate([select], model.predictions(dev.sequences), dev.targets)[select]

    fitted = [KmerModel(task.target.kind, max_k, c).fit(train.sequences, train.targets) for c in strengths]
    best = max(fitted, key=score)
    return {name: best.predictions(task.splits[name].sequences) for name in ("dev", "test")}
