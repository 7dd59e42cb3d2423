"""Measure attention sinks on the base: what queries give to a text's first token once a window would have lost it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from senri.mixers import SoftmaxAttention
from senri.models.configuration_senri import SenriConfig
from senri.models.modeling_senri import SenriForCausalLM, SenriModel

SLIDING_TYPES = ("sliding_attention", "hybrid_sliding")


def sink_layers(config: SenriConfig) -> list[int]:
    """Return the layers that have an attention sink."""
    if not config.attention_sink:
        return []
    return [index for index, kind in enumerate(config.layer_types or []) if kind in SLIDING_TYPES]


class SinkMeasure:
    """Collects one layer's mean score of the first key over queries beyond the window, and that key's mean value.

    Args:
        mixer: the base's attention.
        window: tokens a query will see, itself included.
    """

    def __init__(self, mixer: SoftmaxAttention, window: int) -> None:
        self.mixer, self.window = mixer, window
        self.score_sum: Tensor | float = 0.0
        self.value_sum: Tensor | float = 0.0
        self.queries = self.texts = 0

    @torch.no_grad()
    def update(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> None:
        """Take in one text: the attention's input `[1, seq, hidden]` and its rotary cosines and sines."""
        if hidden_states.shape[1] <= self.window:
            return
        q, k, v = self.mixer.project(hidden_states)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        first = k[:, :, :1].repeat_interleave(self.mixer.num_key_value_groups, dim=1)
        scores = (q[:, :, self.window :] * first).sum(dim=-1).double() * self.mixer.scaling
        self.score_sum = self.score_sum + scores.sum(dim=(0, 2))
        self.value_sum = self.value_sum + v[:, :, 0].double().sum(dim=0)
        self.queries += scores.shape[2]
        self.texts += 1

    @torch.no_grad()
    def store(self, sink: Any) -> None:
        """Write what was measured into an `AttentionSink`."""
        sink.score.copy_(self.score_sum / self.queries)
        sink.value.copy_(self.value_sum / self.texts)


@contextmanager
def measured_sinks(base: SenriModel, model: SenriForCausalLM) -> Iterator[None]:
    """Watch the base while it reads inside the block; at its end, set the sinks of the converted model."""
    config = model.config
    measures: dict[int, SinkMeasure] = {}
    hooks = []
    for index in sink_layers(config):
        mixer: Any = base.layers[index].self_attn
        assert config.sliding_window is not None
        measures[index] = SinkMeasure(mixer, config.sliding_window)
        hooks.append(mixer.register_forward_pre_hook(_watch(measures[index]), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for index, measure in measures.items():
        converted: Any = model.model.layers[index].self_attn
        if measure.texts:
            measure.store(converted.sink)


def _watch(measure: SinkMeasure) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        measure.update(args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"])

    return hook
