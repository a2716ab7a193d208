"""How fast evaluations end and how long the rest takes, and times as a person reads them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW = 50  # evaluations that the rate is taken over
SHORT = 1.0  # s that say nothing of the rate yet: the experts' own scores are often known

Clock = Callable[[], float]


class Speed:
    """How fast evaluations end, over the last `WINDOW` of them.

    Args:
        clock: seconds, from anywhere.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=WINDOW + 1)

    def begin(self) -> None:
        """The first one begins now; said again, it changes nothing."""
        if not self._times:
            self._times.append(self._clock())

    def tick(self) -> None:
        """One has ended now."""
        self._times.append(self._clock())

    @property
    def rate(self) -> float:
        """Evaluations a second, 0.0 while it is unknown; one that takes longer than those before it counts."""
        ended = len(self._times) - 1
        if ended < 1:
            return 0.0
        span = self._times[-1] - self._times[0]
        late = self._clock() - self._times[-1] - span / ended
        passed = span + max(0.0, late)
        return ended / passed if passed >= SHORT else 0.0

    def left(self, evaluations: int) -> float | None:
        """Return the seconds that so many more take; None if nothing is known yet."""
        rate = self.rate
        if not rate:
            return None
        return max(0.0, evaluations / rate - min(self._clock() - self._times[-1], 1 / rate))


def rate_text(rate: float) -> str:
    """Return evaluations a second in the unit that suits them."""
    for unit, seconds in (("s", 1), ("min", 60)):
        if rate * seconds >= 1:
            return f"{rate * seconds:.1f} evaluations/{unit}"
    return f"{rate * 3600:.1f} evaluations/h"
