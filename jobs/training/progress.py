"""Timing of the training loop: rate, where the time goes, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PHASES = ("data_wait", "transfer", "forward", "backward", "update", "report", "checkpoint")
"""The phases of the loop, in the order in which they are shown."""


@dataclass(frozen=True)
class Lap:
    """The steps since the last line of the log."""

    images_per_s: float
    step_s: float
    """Seconds of a step."""
    phases_s: Mapping[str, float]
    """Seconds of a step by phase. On a GPU, phases of the device run beside those of the host."""
    left_s: float
    """Seconds to the last step at this rate."""

    def metrics(self) -> dict[str, float]:
        """For the curve."""
        seconds = {"step": self.step_s, **self.phases_s}
        return {"train/images_per_s": self.images_per_s} | {f"time/{name}_s": value for name, value in seconds.items()}

    def text(self) -> str:
        """For the log: rate, share of every phase, time left."""
        shares = {name: value / self.step_s for name, value in self.phases_s.items()}
        phases = "  ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in shares.items())
        return f"{self.images_per_s:.1f} img/s  {phases}  left {_clock(self.left_s)}"


class StepTimer:
    """Measures steps, of which `first_step` are done already; `clock` returns seconds."""

    def __init__(
        self, *, steps: int, global_batch: int, first_step: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps, self._global_batch, self._clock = steps, global_batch, clock
        self._begin = self._lap_begin = clock()
        self._lap_step = first_step
        self._phases = dict.fromkeys(PHASES, 0.0)

    def lap(self, step: int, *, phases: Mapping[str, float]) -> Lap:
        """Close the lap that ends with `step` steps done and took these seconds by phase."""
        now, num_steps = self._clock(), step - self._lap_step
        step_s = max(now - self._lap_begin, 1e-9) / num_steps
        for name, seconds in phases.items():
            self._phases[name] += seconds
        self._lap_begin, self._lap_step = now, step
        return Lap(
            images_per_s=self._global_batch / step_s,
            step_s=step_s,
            phases_s={name: phases.get(name, 0.0) / num_steps for name in PHASES},
            left_s=(self._steps - step) * step_s,
        )

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase of all laps since the start."""
        return dict(self._phases)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._begin


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
