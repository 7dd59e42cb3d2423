"""Watching a memory: a function that is told of every write just before it happens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from senri.errors import SenriError
from senri.memory.scan import Run

WriteWatcher = Callable[[Run, Any], None]
"""Takes what is about to be written, and what the state holds before: `Running`, or what the memory's class says."""


class WatchedWrites:
    """What a memory made of matrices has for those who want to see its writes; costs nothing while nobody does."""

    _watcher: WriteWatcher | None = None

    @contextmanager
    def watch(self, watcher: WriteWatcher) -> Iterator[None]:
        """Tell `watcher` of every write within the block; outputs and states stay bit-equal.

        It is called once for every run of tokens that is scanned. Layers that share a state scan the writing layer's
        tokens again, to read with them; they are told as well. A frozen memory writes nothing, and nothing is told.

        Args:
            watcher: called with the `Run` (features, values, strength, decay) and the `Running` state before it, whose
                heads are those of the run. It must not change their tensors.

        Raises:
            SenriError: the memory is being watched already.
        """
        if self._watcher is not None:
            raise SenriError("this memory is being watched already: leave that block before watching it again.")
        self._watcher = watcher
        try:
            yield
        finally:
            del self._watcher
