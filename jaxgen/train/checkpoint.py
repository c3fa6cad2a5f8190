"""Checkpoints of a run: Orbax, asynchronous, local or `gs://`.

One step holds everything that the run is made of: `state` (a flat dict of named arrays, sharded as they were), and `run` (JSON: the
position in the data, the selection so far). A step becomes visible only when it is whole, so a killed save is never picked up.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxgen.errors import InputError
from jaxgen.layers.variables import named_arrays, with_arrays

State = TypeVar("State")  # a TrainState, or any other tree of arrays


class _LatestAndBest(preservation_policy.PreservationPolicy):
    """Keep the newest checkpoints, and the one that selection points at."""

    def __init__(self, keep: int):
        self.keep, self.best_step = keep, -1

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        newest = len(checkpoints) - self.keep
        return [i >= newest or info.step == self.best_step for i, info in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: str, *, keep: int = 2):
        # Orbax wants absolute paths; this is the one place that makes them so.
        self.directory = epath.Path(workdir) / "checkpoints"
        if "://" not in str(workdir):
            self.directory = epath.Path(self.directory.resolve())
        self._policy = _LatestAndBest(keep)
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                create=True,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                step_prefix="step",
            ),
        )

    def latest_step(self) -> int | None:
        """The newest step that is whole. A newer one that lost files (a failing disk, a copy cut short) is removed, to be saved again."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            if all((self._folder(step) / name).exists() for name in ("run/metadata", "state/_METADATA", "state/manifest.ocdbt")):
                return step
            self._manager.delete(step)
        return None

    def _folder(self, step: int) -> epath.Path:
        return self.directory / f"step_{step}"

    def save(self, state: Any, run: dict[str, Any], *, best_step: int) -> None:
        """Start saving in the background; an error of the save before is raised here.

        Raises:
          InputError: the disk is full or not writable.
        """
        self._policy.best_step = best_step
        step = run["step"]
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(named_arrays(state)), run=ocp.args.JsonSave(run))
        with self._as_input_error():
            self._manager.save(step, args=args, force=True)

    def restore_run(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]

    def restore_state(self, step: int, target: State) -> State:
        """The state of `step`, placed like `target`, whatever devices it was saved from.

        Raises:
          InputError: the checkpoint is of another architecture: lists missing, unused and mismatched tensors.
        """
        wanted = named_arrays(target)
        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in wanted.items()}
        arguments = ocp.args.PyTreeRestore(item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        try:
            saved = dict(self._manager.item_metadata(step)["state"])
            shapes = {name: tuple(meta.shape) for name, meta in saved.items()}
            check_names({name: tuple(x.shape) for name, x in wanted.items()}, shapes, f"checkpoint {self._folder(step)}")
            return with_arrays(target, self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"])
        except InputError:
            raise
        except (ValueError, OSError) as error:  # TensorStore's errors are ValueErrors
            where = f"checkpoint {self._folder(step)}"
            raise InputError(f"{where} is damaged ({_first_line(error)}); delete it to go on from the one before") from error

    def wait(self) -> None:
        """Until every save is on disk; raises what went wrong in the background."""
        with self._as_input_error():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def _as_input_error(self) -> "_DiskErrors":
        return _DiskErrors(str(self.directory))


class _DiskErrors:
    """Turns a failed write into one line that says what to do."""

    def __init__(self, where: str):
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None or isinstance(error, InputError):
            return
        text = str(error)
        if isinstance(error, OSError) or any(word in text for word in ("No space left", "Disk quota", "RESOURCE_EXHAUSTED", "PERMISSION")):
            reason = "No space left on device" if "No space left" in text else _first_line(error)
            raise InputError(
                f"{self.where}: could not save a checkpoint ({reason}); "
                "free space or choose another --workdir, then run the same command again"
            ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def check_names(wanted: dict[str, tuple[int, ...]], saved: dict[str, tuple[int, ...]], where: str) -> None:
    """Compare a saved tree with the one that the model needs.

    Raises:
      InputError: counts and first names of what is missing, unused or of another shape.
    """
    problems = []
    for label, names in (
        ("missing", sorted(wanted.keys() - saved.keys())),
        ("unused", sorted(saved.keys() - wanted.keys())),
        ("mismatched", sorted(n for n in wanted.keys() & saved.keys() if wanted[n] != saved[n])),
    ):
        if names:
            shown = [f"{n} {saved[n]} here, {wanted[n]} in the model" if label == "mismatched" else n for n in names[:4]]
            problems.append(f"{len(names)} {label} ({'; '.join(shown)}{', ...' if len(names) > 4 else ''})")
    if problems:
        raise InputError(f"{where} is of another architecture: {', '.join(problems)}; use the config it was trained with")
