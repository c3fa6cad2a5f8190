"""What the training jobs share: the workdir, the model of a config, and one run from first to last step."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxgen.checkpoints import workdir as workdirs
from jaxgen.errors import InputError, nearest
from jaxgen.jobs.tuning import Tuning, tuning
from jaxgen.layers.variables import named_arrays, with_arrays
from jaxgen.models.family import Family, override
from jaxgen.models.pretrained import read_weights, with_head
from jaxgen.models.registry import resolve
from jaxgen.tokenizers import Tokenizer
from jaxgen.train import metrics, optim, schedules
from jaxgen.train.evaluate import Evaluator, PredictionEvaluator
from jaxgen.train.logging import RunLog, read_history, write_arrays, write_json, write_result
from jaxgen.train.loop import Fitted, Plan, Stream, fit, run_result
from jaxgen.train.memory import peak_flops
from jaxgen.train.objectives import Objective
from jaxgen.train.report import write_report
from jaxgen.train.sharding import make_mesh
from jaxgen.train.state import Program, TrainState, initialiser
from jaxgen.train.termination import Termination

# Fields that may differ between the runs that share a workdir: they change neither parameters nor metrics.
_NOT_BINDING = ("workdir", "compile_cache", "mesh", "data.threads", "data.prefetch", "data.cache", "probe.n_jobs")
_NOT_BINDING += ("train.log_every", "train.checkpoint_every", "train.keep", "train.report", "train.track")


def say(text: str) -> None:
    """A line for people, from the main process only."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


# Groups of fields that one job reads; the others do not mind them.
_OWN_GROUPS = {
    "baseline": ("baseline", "benchmark"),
    "benchmark": ("benchmark",),
    "embed": ("embed", "explain", "score", "generate", "predict"),
    "explain": ("explain",),
    "generate": ("generate",),
    "perturbation": ("crossval",),
    "probe": ("probe_variants",),
    "score": ("score",),
    "variants": ("score_variants",),
}


def _binds(field: str, job: str) -> bool:
    """Whether runs of a job that share a workdir must have the same value."""
    group = field.partition(".")[0]
    return job in _OWN_GROUPS.get(group, (job,)) and not any(field == free or field.startswith(free + ".") for free in _NOT_BINDING)


def claim_workdir(config: ConfigDict) -> epath.Path:
    """The workdir, which is new or of this job; every job calls this (or `open_workdir`) before it reads or writes anything.

    Raises:
      InputError: no workdir given, or it holds something else than this job's runs.
    """
    if not config.workdir:
        raise InputError("--workdir=DIR is missing: where should the results go?")
    path = epath.Path(config.workdir)
    if path.exists() and not path.is_dir():
        raise InputError(f"--workdir={config.workdir} is a file; give a folder")
    file = next((path / name for name in ("config.json", "result.json") if (path / name).exists()), None)
    if file is not None:
        try:
            owner = json.loads(file.read_text())["job"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"--workdir={config.workdir} holds a {file.name} that no job of jaxgen wrote; choose another --workdir"
            ) from None
        if owner != config.job:
            what = f"holds a run with config.job={owner!r}, not {config.job!r}"
            raise InputError(f"--workdir={config.workdir} {what}; choose another --workdir or delete it")
    return path


def difference(config: ConfigDict) -> str:
    """The first field that the run in the workdir has otherwise, such as "config.seed=1, not 2"; empty when there is none."""
    theirs = _flat(json.loads((epath.Path(config.workdir) / "config.json").read_text()))
    for field, value in _flat(json.loads(json.dumps(config.to_dict()))).items():
        unknown_and_off = field not in theirs and not value  # a field added since that run, and not made use of
        if _binds(field, config.job) and theirs.get(field) != value and not unknown_and_off:
            return f"config.{field}={theirs.get(field)!r}, not {value!r}"
    return ""


def open_workdir(config: ConfigDict, progress: str = "checkpoints/step_*") -> bool:
    """Check that the workdir is new or of this very config, before anything is read or written. A run without a checkpoint binds nothing.

    Args:
      progress: pattern of what an unfinished run leaves to be resumed from.

    Returns:
      whether the run is finished already; its result is shown.

    Raises:
      InputError: as `claim_workdir`; or it holds a run of other settings (the first difference is named).
    """
    path = claim_workdir(config)
    result = path / "result.json"
    finished = result.exists()
    if not finished and not any(path.glob(progress)):
        return False
    if not (path / "config.json").exists():
        what = "a result" if finished else "part of a run"
        raise InputError(f"--workdir={config.workdir} holds {what} but no config.json; choose another --workdir")
    if found := difference(config):
        raise InputError(f"--workdir={config.workdir} holds a run with {found}; choose another --workdir or delete it")
    if finished:
        for split, values in json.loads(result.read_text())["metrics"].items():
            say(f"{split}: {shown(values)}")
        say(f"result: {result}  (this run is finished already)")
    return finished


def shown(values: Mapping[str, float | None]) -> str:
    """Metrics on one line."""
    return "  ".join(f"{name} {math.nan if value is None else value:.4f}" for name, value in values.items())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Which backbone a config asks for, and the weights it starts from (None: from scratch), which came from `folder`."""

    family: Family
    config: Any
    arrays: Mapping[str, np.ndarray] | None
    folder: epath.PathLike = ""


def model_spec(config: ConfigDict) -> ModelSpec:
    """The backbone of a config, before anything is known of the task.

    Raises:
      InputError: no model; unknown model, size, field or precision; a checkpoint of another family.
    """
    runtime = dict(config.model.config.to_dict())
    if config.precision not in ("float32", "bfloat16"):
        raise InputError(f"precision={config.precision!r}{nearest(config.precision, ['float32', 'bfloat16'])}")
    runtime["dtype"] = config.precision
    if config.model.remat:
        runtime["remat"] = config.model.remat
    if config.init_from:
        weights = read_weights(config.init_from, runtime, resolve(config.model.name)[0] if config.model.name else None)
        return ModelSpec(weights.family, weights.config, weights.arrays, weights.folder)
    if not config.model.name:
        raise InputError("no model: give --config.model.name=MODEL (or FILE.py:MODEL) or --config.init_from=WEIGHTS")
    family, size = resolve(config.model.name)
    return ModelSpec(family, override(size, runtime), None)


def sized_for(config: ConfigDict, spec: ModelSpec, length: int, classes: int = 0) -> ModelSpec:
    """`spec` for inputs of `length` tokens and a target of `classes`: a model from scratch takes their sizes.

    A pretrained model with published heads gets the classification head for `classes` > 0, else its language-model head; heads of the
    checkpoint that do not fit are left out, and start fresh.

    Raises:
      InputError: a pretrained model with its own classifier and another size.
    """
    sized = spec.family.for_task(spec.config, length, classes)
    if spec.arrays is None:
        return dataclasses.replace(spec, config=override(sized, config.model.config.to_dict()))
    if spec.family.emits == "predictions":
        needs = dataclasses.asdict(sized)
        unfit = [f"{name}={value}, not {needs[name]}" for name, value in dataclasses.asdict(spec.config).items() if needs[name] != value]
        if unfit:
            raise InputError(f"init_from={config.init_from} is a {spec.family.name} with {' and '.join(unfit)} as this task needs")
    if spec.family.own_head:
        return dataclasses.replace(spec, **with_head(spec.family, spec.config, spec.arrays, classes))
    return spec


def with_pretrained(state: TrainState, arrays: Mapping[str, np.ndarray]) -> TrainState:
    """The state with the backbone's arrays replaced, each placed where the old one was."""

    def place(group: Any) -> Any:
        named = named_arrays(group)
        new = {
            name: jax.device_put(jnp.asarray(arrays[key], old.dtype), old.sharding)
            for name, old in named.items()
            if (key := name.removeprefix("backbone.")) in arrays and name.startswith("backbone.")
        }
        return with_arrays(group, new)

    params = place(state.params)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, frozen=place(state.frozen), model_state=place(state.model_state), ema=ema)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that differs between training jobs.

    Attributes:
      build: (backbone, rngs) -> the module that maps a batch to predictions.
      stream: training batches; `steps_per_epoch` of them are an epoch.
      evaluators: (program) -> {"valid": ..., "test": ...}; `valid` selects.
      select: metric of the validation split that selects, unless the config names one.
      tokens_per_example: for MFU.
      tokenizer: its vocabulary is kept beside the model.
    """

    spec: ModelSpec
    build: Callable[[nnx.Module, nnx.Rngs], nnx.Module]
    objective: Objective
    stream: Stream
    steps_per_epoch: int
    evaluators: Callable[[Program], Mapping[str, Evaluator]]
    select: str
    tokens_per_example: int
    title: str
    loss_label: str = "cross entropy (nats)"
    class_names: tuple[str, ...] = ()
    simulated: bool = False
    extra_result: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None


@dataclasses.dataclass(frozen=True)
class Ready:
    """A run that could take its first step; `initial` gives the first state under another seed."""

    program: Program
    state: TrainState
    initial: Callable[[int], TrainState]
    plan: Plan
    tuned: Tuning
    evaluators: Mapping[str, Evaluator]


def set_up(config: ConfigDict, run: Run, mesh: Mesh) -> Ready:
    """Initialise the model and its optimiser, and say what will be trained.

    Raises:
      InputError: settings that do not fit together.
    """
    t = config.train
    steps = total_steps(config, run.steps_per_epoch)
    check_batches(t, mesh)
    schedule = schedules.from_config(t.schedule.to_dict(), t.learning_rate, steps)
    fields = optim.OptimizerConfig.of(t.to_dict())
    tuned = tuning(config, run.spec.family, run.spec.config)

    def build(key: jax.Array) -> nnx.Module:
        backbone_key, head_key = jax.random.split(key)
        backbone = run.spec.family.build(run.spec.config, nnx.Rngs(backbone_key))
        return run.build(tuned.adapt(backbone, nnx.Rngs(jax.random.fold_in(backbone_key, 1))), nnx.Rngs(head_key))

    graphdef, optimizer, random = initialiser(
        build, tuned.freeze, lambda params: optim.make_optimizer(fields, params, schedule), mesh, t.ema_decay > 0
    )
    program = Program(graphdef, run.objective, optimizer, mesh, t.accumulate, t.ema_decay)

    def initial(seed: int) -> TrainState:
        return random(seed) if run.spec.arrays is None else with_pretrained(random(seed), run.spec.arrays)

    state = initial(config.seed)
    n_params = sum(x.size for x in named_arrays(state.params).values())
    n_frozen = sum(x.size for x in named_arrays(state.frozen).values())
    say(
        f"{run.title}: {run.spec.family.name}, {n_params:,} trained{f' and {n_frozen:,} frozen' if n_frozen else ''} parameters, "
        f"{steps} steps of {t.batch_size} on {mesh.size} {jax.devices()[0].device_kind}"
    )
    say(optim.describe_groups(state.params, fields, state.frozen))
    if config.model.adapter != "full" and not config.init_from:
        say(f"note: model.adapter={config.model.adapter} without init_from: the weights that stay frozen are random")
    select = t.select or run.select
    eval_every = t.eval_every or (run.steps_per_epoch if t.epochs else max(1, steps // 10))
    flops = run.spec.family.token_flops
    plan = Plan(
        steps=steps,
        eval_every=eval_every,
        checkpoint_every=t.checkpoint_every or eval_every,
        log_every=t.log_every,
        batch_size=t.batch_size,
        nan_policy=t.nan_policy,
        select=select,
        larger_is_better=metrics.larger_is_better(select),
        patience=t.patience,
        learning_rate=schedule,
        flops_per_step=3 * flops(run.spec.config, run.tokens_per_example) * run.tokens_per_example * t.batch_size if flops else None,
        peak_flops=peak_flops(),
    )
    evaluators = run.evaluators(program)
    if select not in evaluators["valid"].names:
        raise InputError(f"train.select={select!r} is not computed for this task{nearest(select, evaluators['valid'].names)}")
    return Ready(program, state, initial, plan, tuned, evaluators)


def train(config: ConfigDict, run: Run, termination: Termination) -> None:
    """One run: initialise or resume, train, evaluate the best step on every split, write result.json and report/.

    Whatever SIGTERM interrupts after the last step is done again by the next start, from the checkpoint of that step.
    """
    ready = set_up(config, run, make_mesh(config.mesh))
    with open_log(config, run, ready) as log:
        program, state, plan, evaluators = ready.program, ready.state, ready.plan, ready.evaluators
        fitted, checkpoints = fit(
            program,
            state,
            run.stream,
            plan,
            config.workdir,
            log,
            evaluators["valid"],
            say=say,
            termination=termination,
            keep=config.train.keep,
        )
        if fitted.interrupted:
            checkpoints.close()
            return
        termination.check()
        best = fitted.state
        if fitted.best_step != fitted.steps:
            best = checkpoints.restore_state(fitted.best_step, best)
        results = {split: evaluator.metrics(best) for split, evaluator in evaluators.items()}
        checkpoints.close()
        log.flush()
        finish(config, run, ready, fitted, best, results)


def open_log(config: ConfigDict, run: Run, ready: Ready) -> RunLog:
    """The log of a run, beside its config, model and tokenizer."""
    log = RunLog(config.workdir, jax.process_index() == 0, config.train.track)
    log.write_config(config.to_dict())
    if jax.process_index() == 0:
        model = {"family": run.spec.family.name, "config": dataclasses.asdict(run.spec.config), **ready.tuned.record()}
        write_json(epath.Path(config.workdir) / workdirs.MODEL_FILE, model)
        if run.tokenizer is not None:
            run.tokenizer.save(config.workdir)
    return log


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Optimiser steps of the run.

    Raises:
      InputError: neither or both of train.steps and train.epochs.
    """
    t = config.train
    if bool(t.steps) == bool(t.epochs):
        raise InputError(f"set one of train.steps and train.epochs (they are {t.steps} and {t.epochs})")
    return int(t.steps or t.epochs * steps_per_epoch)


def check_batches(t: ConfigDict, mesh: Mesh) -> None:
    """Rows of every (micro-)batch must divide over the devices.

    Raises:
      InputError: naming the field and the number that it must be a multiple of.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    for field, rows, unit in (("batch_size", t.batch_size, devices * t.accumulate), ("eval_batch_size", t.eval_batch_size, devices)):
        if rows % unit:
            factors = f"{devices} devices (mesh.data x mesh.fsdp)" + (f" x train.accumulate={t.accumulate}" if unit > devices else "")
            raise InputError(f"train.{field}={rows} must be a multiple of {unit}: {factors}")


def finish(
    config: ConfigDict, run: Run, ready: Ready, fitted: Fitted, best: TrainState, results: Mapping[str, Mapping[str, float]], **extra: Any
) -> None:
    """Write down what the best step gives on every split; result.json last, so that its presence means a finished run.

    Args:
      extra: more of result.json.
    """
    for split, values in results.items():
        say(f"{split}: {shown(values)}  (step {fitted.best_step})")
    if adapter := ready.tuned.save(best, config.workdir, config.init_from):
        say(f"adapter in peft's format: {adapter}")
    told = {"job": config.job, "model": run.spec.family.name, "select": ready.plan.select, **run.extra_result, **extra}
    result = run_result(fitted, results, config.seed, told)
    evaluators = ready.evaluators.items()
    last = {split: x.last for split, x in evaluators if isinstance(x, PredictionEvaluator) and x.last is not None}
    predictions = {split: (outputs, targets) for split, (outputs, targets, _) in last.items()}
    if config.train.report and jax.process_index() == 0:
        write_report(
            config.workdir,
            read_history(config.workdir),
            predictions,
            class_names=run.class_names or None,
            metrics=results,
            title=f"{run.spec.family.name} on {run.title}",
            loss_label=run.loss_label,
            best_step=fitted.best_step,
            simulated=run.simulated,
        )
        say(f"report: {epath.Path(config.workdir) / 'report' / 'index.html'}")
    if jax.process_index() == 0:
        if predictions:
            arrays = {f"{split}_{name}": x for split, pair in predictions.items() for name, x in zip(("predictions", "targets"), pair)}
            write_arrays(epath.Path(config.workdir) / "predictions.npz", arrays)
        write_result(config.workdir, result)
    rate = result["examples_per_second"]
    say(f"result: {epath.Path(config.workdir) / 'result.json'}  ({rate:,.1f} examples/s, {math.ceil(fitted.wall_seconds)} s)")


def limited(batches: Iterable[Any], n: int) -> Callable[[], Iterable[Any]]:
    """The first `n` batches (0: all), again at every call."""

    def take() -> Iterable[Any]:
        for i, batch in enumerate(batches):
            if n and i >= n:
                return
            yield batch

    return take
