"""Golden families of the training room: metric definitions and schedules."""

import jax
import numpy as np

from jaxgen.goldens.core import Case, golden
from jaxgen.train import metrics, schedules

Arrays = dict[str, np.ndarray]


@golden("metrics", inputs=("logits", "labels"))
def metric_definitions(case: Case) -> Arrays:
    logits, labels = case.arrays["logits"], case.arrays["labels"]
    batch_size = case.config["batch_size"]
    computed = {}
    for name, expected in case.arrays.items():
        if name in ("logits", "labels"):
            continue
        if name.startswith("per_batch_"):
            value = metrics.per_batch(name.removeprefix("per_batch_"), logits, labels, batch_size)
        elif name.endswith("_batch_averaged"):
            value = metrics.batch_averaged(name.removesuffix("_batch_averaged"), logits, labels, batch_size)
        else:
            value = metrics.evaluate([name], logits, labels)[name]
        computed[name] = np.reshape(value, expected.shape)
    return computed


@golden("lr_schedule")
def lr_schedule(case: Case) -> Arrays:
    return {
        name: np.asarray(jax.jit(jax.vmap(schedules.make("cosine_timm", **case.config[name])))(np.arange(len(expected))))
        for name, expected in case.arrays.items()
        if name in case.config
    }
