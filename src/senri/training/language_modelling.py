"""LanguageModelling: next-token loss of long sequences, segment by segment, the state and its gradients carried on.

A sequence is run in segments through the same cache that inference uses, so training sees what reading will see. The
backward pass runs each segment again (`checkpointing`), and what is kept in between is the states at the borders.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import Cache

from senri.mixers.cache_senri import SenriMemoryLayer, peek_cache
from senri.training.objective import SegmentedObjective


class LanguageModelling(SegmentedObjective):
    """What the trainer runs: token ids in, the mean loss of all predictions out.

    Each row starts with an empty state.

    Args:
        *segments: of `SegmentedObjective`.
        base: what the model's predictions are also held to; None for none.
        kl_weight: share of the divergence from the base's predictions in the loss.
    """

    def __init__(
        self,
        *segments: Any,
        base: Any = None,
        kl_weight: float = 0.0,
    ) -> None:
        super().__init__(*segments)
        self.kl_weight = kl_weight
        self._base = [base]  # in a list, so that it is no part of this module: it is neither trained nor saved

    def forward(self, input_ids: Tensor, lower_states: Tensor | None = None) -> dict[str, Tensor]:
        """Return `loss`, a scalar.

        Args:
            input_ids: `[batch, seq]`, at least two tokens.
            lower_states: `[batch, seq, hidden]`, what enters `start_layer`; None to run all layers.
        """
        seen = input_ids.shape[1] - 1  # the last token is only a target
        cache = base_cache = None
        if seen > self.segment_tokens:
            cache = self.model.model.adopt(DynamicCache(config=self.model.config))
            base_cache = DynamicCache(config=self._base[0].config) if self.kl_weight else None
        total = input_ids.new_zeros((), dtype=torch.float32)
        for begin in range(0, seen, self.segment_tokens):
            end = min(begin + self.segment_tokens, seen)
            ids, targets = input_ids[:, begin:end], input_ids[:, begin + 1 : end + 1]
            lower = None if lower_states is None else lower_states[:, begin:end]
            wanted = self._base_logits(ids, base_cache) if self.kl_weight else None
            if self.checkpointing and cache is not None:
                loss, cache = checkpoint(self._segment, ids, lower, targets, wanted, cache, use_reentrant=False)
            else:
                loss, cache = self._segment(ids, lower, targets, wanted, cache)
            total = total + loss
            if cache is not None and self.gradient != "full":
                detach(cache)
        return {"loss": total / (input_ids.shape[0] * seen)}

    def _segment(
        self, ids: Tensor, lower: Tensor | None, targets: Tensor, wanted: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Cache | None]:
        """Return the summed loss of a segment and the cache after it; the cache given stays as it is."""
        cache = None if cache is None else peek_cache(cache)
        start = {} if lower is None else {"inputs_embeds": lower, "start_layer": self.start_layer}
        out = self.model.model(ids, **start, past_key_values=cache, use_cache=cache is not None)
        logits = self.model.say(out.last_hidden_state).flatten(0, 1).float()
        loss = F.cross_entropy(logits, targets.flatten(), reduction="sum")
        if wanted is not None:
            divergence = F.kl_div(
                logits.log_softmax(-1), wanted.flatten(0, 1).log_softmax(-1), reduction="sum", log_target=True
            )
            loss = (1 - self.kl_weight) * loss + self.kl_weight * divergence
        return loss, cache

    @torch.no_grad()
    def _base_logits(self, ids: Tensor, cache: Cache | None) -> Tensor:
        logits: Tensor = self._base[0](ids, past_key_values=cache, use_cache=cache is not None).logits
        return logits.float()


def detach(cache: Cache) -> None:
    """Cut the graph of a cache in place: no gradient reaches what was read before."""
    for layer in cache.layers:
        if isinstance(layer, SenriMemoryLayer):
            layer.detach_()
        for name in ("keys", "values"):
            if isinstance(tensor := getattr(layer, name, None), Tensor):
                setattr(layer, name, tensor.detach())
