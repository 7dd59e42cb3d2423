"""Stopping in order: Ctrl-C and SIGTERM are noted, the work at hand is finished and kept."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether someone has asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def note(self, _number: int, _frame: FrameType | None) -> None:
        """Remember the request; asked a second time, stop at once.

        Raises:
            KeyboardInterrupt: at the second request.
        """
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def noticed_stops() -> Iterator[StopRequest]:
    """Within the block Ctrl-C and SIGTERM only set `asked`; afterwards they do what they did before."""
    request = StopRequest()
    before = {number: signal.signal(number, request.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(KeyboardInterrupt):
    """A stop that was asked for and done in order; its message says what was kept and how to go on."""
