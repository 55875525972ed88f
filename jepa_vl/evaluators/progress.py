"""Signs of life of evaluations that last: whoever waits for one may listen.

Evaluators call :func:`beat` where a batch, a part of a training or an iteration is done, never
where it is only asked for: what hangs is silent.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 32  # steps of a loop that does not wait for its device, from one sign to the next

_listeners: list[Callable[[], None]] = []


def beat() -> None:
    """Something is done; costs nothing."""
    for listener in _listeners:
        listener()


@contextmanager
def heard_by(listener: Callable[[], None]) -> Iterator[None]:
    """While open, ``listener`` is called at each sign."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
