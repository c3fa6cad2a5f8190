"""Train a model, pretrained or from scratch, on a labelled task, and evaluate the best step on the test split."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from jaxgen import tokenizers
from jaxgen.data.pipeline import TableSource, eval_batches, token_length, train_loader
from jaxgen.heads.decoder import SequenceHead
from jaxgen.heads.predictor import DirectPredictor, SequencePredictor
from jaxgen.jobs.tasks import load_task
from jaxgen.jobs.training import Run, limited, model_spec, open_workdir, say, train
from jaxgen.models.family import Family
from jaxgen.train import objectives
from jaxgen.train.evaluate import Evaluator, PredictionEvaluator
from jaxgen.train.state import Program

# Split of the task -> name in result.json.
SPLITS = {"dev": "valid", "test": "test"}


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    if open_workdir(config):
        return 0
    d, t = config.data, config.train
    task = load_task(config)

    def length(family: Family) -> int:
        name, tokenizer_options = family.tokenizer(family.sizes[family.default_size])
        return d.max_length or token_length(task.splits["train"].sequences, tokenizers.get(name, **tokenizer_options))

    spec = model_spec(config, length, task.target.outputs)
    name, tokenizer_options = spec.family.tokenizer(spec.config)
    tokenizer = tokenizers.get(name, **tokenizer_options)
    max_length = d.max_length or token_length(task.splits["train"].sequences, tokenizer)
    sources = {
        split: TableSource(
            examples,
            tokenizer,
            max_length,
            rc_aug=d.rc_aug and split == "train",
            max_shift=d.max_shift if split == "train" else 0,
            conjoin=d.conjoin_train if split == "train" else d.conjoin_eval,
        )
        for split, examples in task.splits.items()
    }
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    reading = {"num_threads": d.threads, "prefetch": d.prefetch}
    loader = train_loader(sources["train"], batch_size=t.batch_size, seed=config.seed, **process, **reading)

    def build(backbone: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        if spec.family.emits == "predictions":
            return DirectPredictor(backbone)
        head = SequenceHead(spec.config.d_model, task.target.outputs, rngs, pooling=config.head.pooling)
        return SequencePredictor(backbone, head, masked=config.model.masked)

    def evaluators(program: Program) -> dict[str, Evaluator]:
        rows = t.eval_batch_size or t.batch_size
        return {
            ours: PredictionEvaluator(program, limited(eval_batches(sources[split], rows, **process, **reading), 0), task.target.metrics)
            for split, ours in SPLITS.items()
        }

    extra = {"task": task.name, "simulated": task.simulated, "max_length": sources["train"].max_length}
    extra |= {"pad_fraction": sources["train"].pad_fraction, "truncated": sources["train"].truncated}
    if task.attainable:
        extra["attainable"] = dict(task.attainable)
        say(f"{task.name} is simulated; the generating model itself reaches {extra['attainable']}")
    classification = task.target.kind == "classification"
    return train(
        config,
        Run(
            spec=spec,
            build=build,
            objective=objectives.classification if classification else objectives.regression,
            stream=loader,
            steps_per_epoch=loader.steps_per_epoch,
            evaluators=evaluators,
            select=task.target.select,
            tokens_per_example=sources["train"].max_length * (2 if d.conjoin_train else 1),
            title=task.name,
            loss_label="cross entropy (nats)" if classification else "mean squared error",
            class_names=task.target.names if classification else (),
            simulated=task.simulated,
            extra_result=extra,
        ),
    )
