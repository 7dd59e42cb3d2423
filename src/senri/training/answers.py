"""AnswersOnly: needle samples whose loss is the answer's alone, and of which only what the answer needs is run.

A sample is read into the memory up to its question. The question then begins with an empty window, so that the memory
alone can know the answer. No prediction is wanted before, so layers above the last memory need not read the text, and
with the outputs of the frozen layers below the first memory at hand, those need not either: of a long text only the
layers from the first memory to the last are run, and of the last only the write.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import Cache

from senri.errors import SenriError
from senri.memory.branch import MemoryBranch
from senri.mixers import given_values, seen_by_memory
from senri.mixers.cache_senri import SenriMemoryLayer, peek_cache
from senri.training.language_modelling import detach
from senri.training.objective import SegmentedObjective


class AnswersOnly(SegmentedObjective):
    """What the trainer runs: needle samples in, the mean loss of their answers' tokens out.

    Args:
        *segments: of `SegmentedObjective`, for reading the text.
        shortened: leave out layers that have no part in the answer; otherwise all read the text (the slow reference).

    Raises:
        SenriError: a model without a memory.
    """

    def __init__(self, *segments: Any, shortened: bool = True) -> None:
        super().__init__(*segments)
        branches = self.model.model.memory_branches()
        if not branches:
            raise SenriError("answers_only trains what a memory recalls, but the model has no memory: set it to false.")
        last = max(branches)
        # A layer that only reads a shared state, or one that is nothing but memory, has no write of its own to stop at.
        self.last_write = last if shortened and isinstance(branches[last], MemoryBranch) else None

    def forward(
        self,
        input_ids: Tensor,
        question_start: Tensor,
        answer_start: Tensor,
        lower_states: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and `correct`, the share of answer tokens that are the likeliest.

        Args:
            input_ids: `[batch, seq]`; each row ends with its answer.
            question_start: `[batch]`, where the question (with the text that stands before it) begins.
            answer_start: `[batch]`, where the answer begins.
            lower_states: `[batch, seq, hidden]`, what enters `start_layer`; None to run all layers.
        """
        memory = self.read(input_ids, question_start, lower_states)
        length = input_ids.shape[1]
        columns = question_start.unsqueeze(1) + torch.arange(
            length - int(question_start.min()), device=input_ids.device
        )
        ids = input_ids.gather(1, columns.clamp(max=length - 1))
        is_answer = (columns >= answer_start.unsqueeze(1)) & (columns < length)
        # Shorter questions are filled up behind their end, which no earlier token sees.
        hidden = self.model.model(ids, position_ids=columns, past_key_values=memory, use_cache=True).last_hidden_state
        before_answer = is_answer[:, 1:]
        logits = self.model.say(hidden, F.pad(before_answer, (0, 1))).float()
        targets = ids[:, 1:][before_answer]
        return {
            "loss": F.cross_entropy(logits, targets),
            "correct": (logits.argmax(-1) == targets).float().mean().detach(),
        }

    def read(self, input_ids: Tensor, question_start: Tensor, lower_states: Tensor | None) -> Cache:
        """Read each row up to its question; return a cache with the memories and no window. As in `forward`."""
        length = int(question_start.max())
        present = torch.arange(length, device=input_ids.device) < question_start.unsqueeze(1)
        mask = None if bool(present.all()) else present
        cache: Any = self.model.model.adopt(DynamicCache(config=self.model.config))
        for begin in range(0, length, self.segment_tokens):
            end = min(begin + self.segment_tokens, length)
            lower = None if lower_states is None else lower_states[:, begin:end]
            seen = None if mask is None else mask[:, :end]
            run = self._segment
            if self.checkpointing and length > self.segment_tokens:
                cache = checkpoint(run, input_ids[:, begin:end], lower, seen, cache, use_reentrant=False)
            else:
                cache = run(input_ids[:, begin:end], lower, seen, cache)
            if self.gradient != "full":
                detach(cache)
        memories: Cache = self._memories_of(cache)
        return memories

    def _segment(self, ids: Tensor, lower: Tensor | None, mask: Tensor | None, cache: Any) -> Any:
        """Return the cache after a segment; the one given stays as it is."""
        cache = peek_cache(cache)
        if self.last_write is None or self.start_layer < self.last_write or lower is None:
            start = {} if lower is None else {"inputs_embeds": lower, "start_layer": self.start_layer}
            out = self.model.model(
                ids, **start, attention_mask=mask, past_key_values=cache, use_cache=True, stop_layer=self.last_write
            )
            lower = out.last_hidden_state
        if self.last_write is not None:
            self._write(ids, lower, None if mask is None else mask[:, -ids.shape[1] :], cache)
        return cache

    def _write(self, ids: Tensor, hidden_states: Tensor, mask: Tensor | None, cache: Any) -> None:
        """Write into the last memory what enters its layer, without reading."""
        assert self.last_write is not None
        layer: Any = self.model.model.layers[self.last_write]
        mixer, held = layer.self_attn, cache.layers[self.last_write]
        hidden_states = layer.input_layernorm(hidden_states)
        embeddings = self.model.model.embed_tokens(ids)
        hidden_states, shared = seen_by_memory(mixer, hidden_states, embeddings), given_values(mixer, embeddings, ids)
        if mixer.memory.config.projections == "shared":
            shared = mixer.project(hidden_states)[0 if mixer.memory.config.short_convolution else 1 :]
        before = held.memory_before(hidden_states.shape[0], hidden_states.device)
        held.memory_state = mixer.memory.write(hidden_states, before, shared, mask)

    def _memories_of(self, cache: Any) -> Any:
        """Return a new cache that holds the memories of another one and nothing else."""
        fresh: Any = self.model.model.adopt(DynamicCache(config=self.model.config))
        for old, new in zip(cache.layers, fresh.layers, strict=True):
            if isinstance(new, SenriMemoryLayer):
                new.memory_state = old.memory_state
        return fresh
