"""One live line on stderr that says how far a run is and how fast it goes."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


class Progress:
    """Counts steps, examples and tokens; shows a bar on a terminal and a plain line every `interval` seconds elsewhere.

    The clock starts at the end of the first update, so that rates leave out compilation.

    Args:
      total: steps of the whole run.
      start: steps already done when this process began.
      is_main_process: the others count, but are silent.
      interval: seconds between plain lines.
      flops_per_step: floating-point operations of the model per step; with `peak_flops` (per second, all devices together) the
        line shows MFU, the share of the peak that the model uses.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        is_main_process: bool = True,
        interval: float = 10.0,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        stream: TextIO | None = None,
    ):
        self._total, self._step = total, start
        self._interval = interval
        self._flops_per_step, self._peak_flops = flops_per_step, peak_flops
        self._stream = stream or sys.stderr
        self._began: float | None = None
        self._now = 0.0
        self._timed_steps = self._examples = self._tokens = 0
        self._shown_at = -math.inf
        self._paused = 0.0
        self._bar: Any = None
        self._active = is_main_process
        if self._active and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, file=self._stream, dynamic_ncols=True, unit="step", smoothing=0.1)

    def update(self, step: int, *, examples: int = 0, tokens: int = 0, loss: float | None = None) -> None:
        """`step` steps are done; `examples` and `tokens` are those processed since the last update."""
        self._now = time.monotonic()
        advance, self._step = step - self._step, step
        if self._began is None:
            self._began = self._now
        else:
            self._timed_steps += advance
            self._examples += examples
            self._tokens += tokens
        if not self._active:
            return
        if self._bar is not None:
            self._bar.update(advance)
            self._bar.set_postfix_str(self._describe(loss), refresh=False)
        elif self._now - self._shown_at >= self._interval or step >= self._total:
            self._shown_at = self._now
            rates = self.rates()
            left = (self._total - step) / rates["steps_per_second"] if rates["steps_per_second"] else math.inf
            print(f"step {step}/{self._total}  {self._describe(loss)}  ETA {_duration(left)}", file=self._stream, flush=True)

    def rates(self) -> dict[str, float]:
        """Mean steps, examples and tokens per second and, if the FLOPs are known, `mfu`; 0 until two updates were made."""
        elapsed = 0.0 if self._began is None else self._now - self._began - self._paused
        per_second = 1.0 / elapsed if elapsed > 0 else 0.0
        rates = {
            "steps_per_second": self._timed_steps * per_second,
            "examples_per_second": self._examples * per_second,
            "tokens_per_second": self._tokens * per_second,
        }
        if self._flops_per_step and self._peak_flops:
            rates["mfu"] = rates["steps_per_second"] * self._flops_per_step / self._peak_flops
        return rates

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for an evaluation or a checkpoint, so that rates are those of training alone."""
        began = time.monotonic()
        try:
            yield
        finally:
            if self._began is not None:
                self._now = time.monotonic()  # rates asked for before the next update leave this pause out, too
                self._paused += self._now - began

    def _describe(self, loss: float | None) -> str:
        rates = self.rates()
        parts = [] if loss is None else [f"loss {loss:.4f}"]
        parts += [f"{rates[f'{unit}_per_second']:,.1f} {unit}/s" for unit in ("examples", "tokens") if rates[f"{unit}_per_second"]]
        parts += [f"MFU {rates['mfu']:.1%}"] if "mfu" in rates else []
        return "  ".join(parts)

    def message(self, text: str) -> None:
        """Prints a line of its own (an evaluation, a checkpoint) without breaking the bar."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
