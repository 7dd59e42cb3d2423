"""Stopping in order: Ctrl-C and SIGTERM are noted, the work at hand is finished and kept."""

import signal
import threading
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


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM is as Ctrl-C, so that temporary files are cleared away; a thread leaves it as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stopped(KeyboardInterrupt):
    """A stop that was asked for and done in order; its message says what was kept and how to go on."""
