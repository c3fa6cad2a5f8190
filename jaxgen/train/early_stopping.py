"""Which checkpoint is the best one, and when to stop looking for a better one."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class Selection:
    """Follows one metric over the evaluations of a run.

    It depends on the values alone (no clock, no files), so a resumed run that restores it goes on as the run that was
    never killed. NaN never improves, ties keep the earlier step. `patience` is the number of evaluations in a row without
    improvement after which to stop; 0 means never.
    """

    metric: str
    larger_is_better: bool
    patience: int = 0
    best_value: float | None = None
    best_step: int | None = None
    without_improvement: int = 0

    def update(self, value: float, step: int) -> tuple[bool, bool]:
        """Takes in the metric at `step`; returns (it is the best so far, training should stop)."""
        value = float(value)
        improved = not math.isnan(value) and (
            self.best_value is None or (value > self.best_value if self.larger_is_better else value < self.best_value)
        )
        if improved:
            self.best_value, self.best_step, self.without_improvement = value, int(step), 0
        else:
            self.without_improvement += 1
        return improved, 0 < self.patience <= self.without_improvement

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Selection":
        """What `to_dict` wrote."""
        return cls(**state)
