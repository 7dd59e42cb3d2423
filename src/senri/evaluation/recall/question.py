"""SharedQuestion: one question to sessions that differ in what a memory holds alone.

Layers below a memory make the same of a question, whatever the memory holds: they read it once. The others read it for
each session.
"""

import torch
from torch import Tensor

from senri.models import Session


class SharedQuestion:
    """A question as the layers below a memory see it.

    Args:
        session: what it is asked of; nothing is written to it.
        layer: the memory's.
        ids: of the question, `[1, seq]`.
    """

    @torch.no_grad()
    def __init__(self, session: Session, layer: int, ids: Tensor) -> None:
        self._layer, self._ids = layer, ids.to(session.model.device)
        cache = session.fork().cache
        below = session.model.model(self._ids, past_key_values=cache, use_cache=True, stop_layer=layer)
        self._inputs: Tensor = below.last_hidden_state

    @torch.no_grad()
    def logits(self, session: Session, logits_to_keep: int) -> Tensor:
        """Return what `session.fork().logits(ids, logits_to_keep)` would: `[1, kept, vocabulary]`.

        Args:
            session: one with the same windows below the memory as the one that was given first.
            logits_to_keep: how many positions, the last ones.
        """
        out = session.model(
            self._ids,
            inputs_embeds=self._inputs,
            past_key_values=session.fork().cache,
            use_cache=True,
            start_layer=self._layer,
            logits_to_keep=logits_to_keep,
        )
        logits: Tensor = out.logits
        return logits
