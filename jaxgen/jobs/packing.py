"""Several seeds of one run, trained together in one program; each leaves what a run of its own would leave."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxgen.jobs import finetune
from jaxgen.jobs.training import Ready, Run, finish, open_log, open_workdir, say, set_up, total_steps, train
from jaxgen.train.checkpoint import Checkpoints
from jaxgen.train.early_stopping import Selection
from jaxgen.train.evaluate import PredictionEvaluator
from jaxgen.train.logging import write_json
from jaxgen.train.loop import Fitted, Plan
from jaxgen.train.packed import Member, fit_packed
from jaxgen.train.sharding import make_mesh
from jaxgen.train.termination import Termination


def run_packed(configs: Sequence[ConfigDict], folder: str) -> None:
    """Fine-tune under configs that differ in `seed` and `workdir` alone. What does not fit together runs one after the other.

    Args:
      folder: holds the progress of all, until they are finished.

    Raises:
      InputError: as the finetune job does.
    """
    open_workdir(_as_one(configs, folder))
    with Termination(say) as termination:
        runs = [finetune.prepare(config) for config in configs]
        if reason := _unlike(configs, runs):
            say(f"one seed after the other: {reason}")
            for config, run in zip(configs, runs):
                if not open_workdir(config):
                    train(config, run, termination)
                if not (epath.Path(config.workdir) / "result.json").exists():
                    return  # a signal asked to stop
        else:
            # One device per mesh: the seeds are what is divided over the devices.
            first = set_up(configs[0], runs[0], make_mesh(dict.fromkeys(configs[0].mesh, 1), jax.local_devices()[:1]))
            ready = [first]
            for config, run in zip(configs[1:], runs[1:]):
                ready.append(replace(first, state=first.initial(config.seed), evaluators=run.evaluators(first.program)))
            _train(configs, runs, ready, folder, termination)


def _as_one(configs: Sequence[ConfigDict], folder: str) -> ConfigDict:
    """What binds the progress in `folder`; the seeds are in its name."""
    config = ConfigDict(configs[0].to_dict())
    config.workdir = folder
    return config


def _unlike(configs: Sequence[ConfigDict], runs: Sequence[Run]) -> str:
    """Why these runs cannot be one program; empty when they can."""
    if jax.process_count() > 1:
        return "packed seeds take one process"
    if any(len(run.extra_result["buckets"]) > 1 for run in runs):
        return "batches of several lengths, which differ between seeds (data.buckets=1 gives them one)"
    if len({total_steps(config, run.steps_per_epoch) for config, run in zip(configs, runs)}) > 1:
        return "another number of steps"
    if any(run.spec.config != runs[0].spec.config or run.extra_result["max_length"] != runs[0].extra_result["max_length"] for run in runs):
        return "another length of the longest sequence (set data.max_length)"
    return ""


def _position(step: int, fitted: Fitted, run: Run, plan: Plan) -> dict[str, Any]:
    """Of a run that is over at its best step: for `init_from`, and for who goes on from here when result.json is missing."""
    selection = Selection(plan.select, plan.larger_is_better, plan.patience, best_step=step)
    data = run.stream.get_state() | {"step": step}
    return {"step": step, "data": data, "selection": selection.to_dict(), "stopped_early": True, "wall_seconds": fitted.wall_seconds}


def _train(configs: Sequence[ConfigDict], runs: Sequence[Run], ready: Sequence[Ready], folder: str, termination: Termination) -> None:
    write_json(epath.Path(folder) / "config.json", _as_one(configs, folder).to_dict())
    with contextlib.ExitStack() as stack:
        members = []
        for config, run, r in zip(configs, runs, ready):
            log = stack.enter_context(open_log(config, run, r))
            evaluators = {split: x for split, x in r.evaluators.items() if isinstance(x, PredictionEvaluator)}
            members.append(Member(f"seed {config.seed}", r.state, run.stream, evaluators, log))
        done = fit_packed(ready[0].program, members, ready[0].plan, folder, say=say, termination=termination)
    for config, run, r, (fitted, results) in zip(configs, runs, ready, done):
        checkpoints = Checkpoints(config.workdir)
        checkpoints.save(fitted.state, _position(fitted.best_step, fitted, run, r.plan), best_step=fitted.best_step)
        checkpoints.close()
        finish(config, run, r, fitted, fitted.state, results, packed=len(configs))
    if done:
        epath.Path(folder).rmtree()
