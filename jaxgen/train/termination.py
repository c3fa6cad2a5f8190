"""SIGTERM (from SLURM, a preempted VM, or a person) ends a training job with everything saved."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


class _Stopped(BaseException):
    """Unwinds a job that has nothing to save; not an `Exception`, which somebody might catch on the way."""


class Termination:
    """Holds SIGTERM while a job runs: `with Termination(say) as termination: ...`.

    The signal ends the block at once, for whatever was read or computed is made again by the next start, except while `saving`, where it
    waits for somebody who asks `agreed` and saves. Several processes can only leave together, so there it always waits for that; a run
    that is beyond its last step then comes to its end.
    """

    def __init__(self, say: Callable[[str], None]):
        self.requested = False
        self._say, self._saving, self._previous = say, False, None

    def __enter__(self) -> "Termination":
        self._previous: Any = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def _on_signal(self, *_: Any) -> None:
        again, self.requested = self.requested, True
        if not again:  # a second signal must not disturb the way out
            self._stop()

    def _stop(self) -> None:
        if self.requested and not self._saving and jax.process_count() == 1:
            raise _Stopped

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        # None: the handler before was not installed from Python (the preemption service of jax.distributed).
        signal.signal(signal.SIGTERM, self._previous if self._previous is not None else signal.SIG_DFL)
        if self.requested and callable(self._previous):
            self._previous(signal.SIGTERM, None)  # the job around this one ends too
        if kind is _Stopped:
            self._say("SIGTERM: stopped; everything is saved, and the same command continues from here")
        return kind is _Stopped

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, the signal is heard by `agreed` alone; the caller saves and returns."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step; all processes answer alike."""
        if jax.process_count() == 1:
            return self.requested
        if step % 10:  # a collective: not at every step
            return False
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.asarray(self.requested)).any())

    def check(self) -> None:
        """Ends the block when the signal came while `saving`, and nobody asked any more."""
        self._stop()
