"""Results of steps, read late, so that devices never wait for the host."""

import collections
from collections.abc import Callable

import jax

from jaxpref.training import metrics


class Arrivals:
    """Hands on the results of steps in their order, each once the next step was started.

    A result that is there already is handed on at once: reading it stalls nothing, and where steps run one by one (on a
    CPU) times are those of single steps. Several processes may see that at different steps, and one that stops at a bad
    value would leave the others waiting, so they always read one step late.
    """

    def __init__(self, take: Callable[[int, dict[str, float], bool], None]):
        """``take(done, values, logged)`` gets the means of each step's metrics."""
        self._take = take
        self._started: collections.deque = collections.deque()

    def started(self, done: int, measured, *, logged: bool) -> None:
        """The step that makes ``done`` finished steps was started; ``measured`` will hold its (sum, count) pairs."""
        self._started.append((done, measured, logged))

    def running(self) -> bool:
        """Whether the newest step is still running."""
        return bool(self._started) and not all(total.is_ready() for total, _ in self._started[-1][1].values())

    def collect(self, *, newest: bool) -> None:
        """Waits for the steps before the newest, and for that one too if ``newest``."""
        newest = newest or (jax.process_count() == 1 and not self.running())
        while len(self._started) > (not newest):
            done, measured, logged = self._started.popleft()
            self._take(done, metrics.means(measured), logged)
