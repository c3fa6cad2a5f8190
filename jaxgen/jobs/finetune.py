"""Train a model, pretrained or from scratch, on a labelled task, and evaluate the best step on the test split."""

from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from jaxgen.data.buckets import bucket_lengths, padded_lengths
from jaxgen.data.pipeline import eval_batches, table_sources, train_loader
from jaxgen.errors import InputError, nearest
from jaxgen.heads.adapters import freeze_patterns
from jaxgen.heads.decoder import SequenceHead
from jaxgen.heads.predictor import DirectPredictor, SequencePredictor
from jaxgen.jobs.tasks import check_task, load_task
from jaxgen.jobs.tokenizer import check_known, choose_tokenizer, with_vocabulary
from jaxgen.jobs.training import Run, limited, model_spec, open_workdir, say, sized_for, total_steps, train
from jaxgen.jobs.tuning import tuning
from jaxgen.models.family import Family
from jaxgen.models.pretrained import family_at
from jaxgen.models.registry import resolve
from jaxgen.train import objectives
from jaxgen.train.evaluate import Evaluator, PredictionEvaluator
from jaxgen.train.state import Program
from jaxgen.train.termination import Termination

# Split of the task -> name in result.json.
SPLITS = {"dev": "valid", "test": "test"}
HEADS = ("auto", "own", "pooled")


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    if not open_workdir(config):
        with Termination(say) as termination:
            train(config, prepare(config), termination)
    return 0


def check(config: ConfigDict) -> None:
    """Whatever `prepare` can refuse before data and weights are read.

    Raises:
      InputError: no such task, files or model, or a head that the model cannot have.
    """
    check_task(config)
    total_steps(config, 1)
    if config.init_from:
        family = family_at(config.init_from, resolve(config.model.name)[0] if config.model.name else None)
        freeze_patterns(config.model.adapter, ())
    else:
        spec = model_spec(config)
        family = spec.family
        tuning(config, family, spec.config)
    if family is not None:
        uses_own_head(config.head.kind, family)


def prepare(config: ConfigDict) -> Run:
    """The task, the model for it, and the batches that they make together.

    Raises:
      InputError: settings that do not fit the task or the model.
    """
    d, t = config.data, config.train
    task = load_task(config)

    spec = with_vocabulary(config, model_spec(config))
    tokenizer = choose_tokenizer(config, spec, task.splits["train"].sequences)
    check_known(tokenizer, task.splits["train"].sequences, task.name)
    options = {name: d[name] for name in ("rc_aug", "max_shift", "conjoin_train", "conjoin_eval")}
    sources = table_sources(task, tokenizer, d.max_length, add_special_tokens=spec.family.special_tokens, **options)
    max_length, truncated = sources["train"].max_length, {SPLITS.get(split, split): x.truncated for split, x in sources.items()}
    if any(truncated.values()):
        cut = ", ".join(f"{n:,} {split}" for split, n in truncated.items() if n)
        say(f"note: sequences longer than {max_length} tokens lose their end: {cut} (data.max_length)")
    own_head = uses_own_head(config.head.kind, spec.family)
    spec = sized_for(config, spec, max_length, task.target.outputs if own_head else 0)
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    # Models with their own classifier take one length; unmasked models see the padding, so its amount is part of the recipe.
    most = d.buckets if spec.family.emits == "hidden" and config.model.masked else 1
    lengths = sources["train"].lengths
    buckets = bucket_lengths(lengths, most, max_length, t.batch_size)
    reading: dict[str, Any] = {"num_threads": d.threads, "prefetch": d.prefetch, "buckets": buckets}
    loader = train_loader(sources["train"], batch_size=t.batch_size, seed=config.seed, **process, **reading)

    def build(backbone: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        if own_head:
            return DirectPredictor(backbone, masked=config.model.masked)
        head = SequenceHead(spec.config.d_model, task.target.outputs, rngs, pooling=config.head.pooling)
        return SequencePredictor(backbone, head, masked=config.model.masked, strands=spec.family.strands)

    def evaluators(program: Program) -> dict[str, Evaluator]:
        rows = t.eval_batch_size or t.batch_size
        return {
            ours: PredictionEvaluator(program, limited(eval_batches(sources[split], rows, **process, **reading), 0), task.target.metrics)
            for split, ours in SPLITS.items()
        }

    extra = {"task": task.name, "simulated": task.simulated, "max_length": max_length}
    extra |= {"buckets": list(buckets), "pad_fraction": sources["train"].pad_fraction(buckets), "truncated": truncated}
    if task.attainable:
        extra["attainable"] = dict(task.attainable)
        say(f"{task.name} is simulated; the generating model itself reaches {extra['attainable']}")
    classification = task.target.kind == "classification"
    if classification:
        extra["classes"] = list(task.target.names)
    return Run(
        spec=spec,
        build=build,
        objective=objectives.classification if classification else objectives.regression,
        stream=loader,
        steps_per_epoch=loader.steps_per_epoch,
        evaluators=evaluators,
        select=task.target.select,
        tokens_per_example=round(padded_lengths(lengths, buckets).mean()) * (2 if d.conjoin_train else 1),
        title=task.name,
        loss_label="cross entropy (nats)" if classification else "mean squared error",
        class_names=task.target.names if classification else (),
        simulated=task.simulated,
        extra_result=extra,
        tokenizer=tokenizer,
    )


def uses_own_head(kind: str, family: Family) -> bool:
    """Whether `head.kind` means the model's own head, for this family.

    Raises:
      InputError: an unknown kind, or one that the family cannot have.
    """
    if kind not in HEADS:
        raise InputError(f"head.kind={kind!r}{nearest(kind, HEADS)}")
    ends_in_it = family.emits == "predictions"
    if kind == "own" and not (family.own_head or ends_in_it):
        raise InputError(f"head.kind=own: {family.name} was published without a classification head; set head.kind=pooled")
    if kind == "pooled" and ends_in_it:
        raise InputError(f"head.kind=pooled: {family.name} ends in its own classifier; set head.kind=own")
    return kind != "pooled" and bool(family.own_head or ends_in_it)
