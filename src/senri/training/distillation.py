"""Distillation: every new mixer learns to give what the base's attention gives in its place, all layers in one pass.

The mixers read the base's own hidden states, so a layer's mistakes do not reach the next one, and the base runs once
for all of them, up to the last layer that is learnt.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from senri.errors import SenriError
from senri.mixers import CopiedMemory
from senri.mixers.context import MixerMasks
from senri.models.masks import create_senri_masks
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.objective import Objective


class Distillation(Objective):
    """What the trainer runs: token ids in, the mean over layers of each mixer's relative squared error out.

    Args:
        model: a Senri model; only its mixers with a memory take part.
        base: the pretrained model it was converted from, in transformers' own class.

    Raises:
        SenriError: the model has no memory, or the base's layers cannot be found.
    """

    def __init__(self, model: SenriForCausalLM, base: Any) -> None:
        super().__init__(model)
        self.layers = sorted(model.model.memory_branches())
        if not self.layers:
            raise SenriError("the model has no memory to distil into: set training.stages.distill.enabled=false.")
        if any(isinstance(model.model.layers[layer].self_attn, CopiedMemory) for layer in self.layers):
            raise SenriError(
                "distillation fits the output of mixers with a memory to the base's, but one of memory.combine 'copy' "
                "has the base's: set training.stages.distill.enabled=false."
            )
        self._base = [_BaseLayers(base, self.layers)]  # in a list: it is neither trained nor saved

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and each layer's part as `layer_<index>`.

        A part is the squared error divided by the mean square of the target, so that no layer outweighs another.

        Args:
            input_ids: `[batch, seq]`.
        """
        pairs = self._base[0].run(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        decoder = self.model.model
        parts: dict[str, Tensor] = {}
        masks: MixerMasks | None = None
        for index in self.layers:
            inputs, target = pairs[index]
            if masks is None:
                masks = MixerMasks(**create_senri_masks(self.model.config, inputs, None, None, positions))
                angles = decoder.rotary_emb(inputs, position_ids=positions)
            out, _ = decoder.layers[index].self_attn(inputs, masks=masks, position_embeddings=angles)
            parts[f"layer_{index}"] = (out - target).float().square().mean() / target.float().square().mean()
        return {
            "loss": torch.stack(list(parts.values())).mean(),
            **{name: part.detach() for name, part in parts.items()},
        }


class _BaseLayers:
    """Runs a base up to the last wanted layer and catches what its attentions take and give."""

    def __init__(self, base: Any, layers: list[int]) -> None:
        self.base = base
        self.decoder = base.base_model
        blocks = getattr(self.decoder, "layers", None)
        if blocks is None or len(blocks) <= layers[-1]:
            raise SenriError(f"the base has no layer {layers[-1]}: it is not what the model was converted from.")
        self.attentions = {index: _attention_of(blocks[index]) for index in layers}

    @torch.no_grad()
    def run(self, input_ids: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return `(inputs, outputs)` `[batch, seq, hidden]` of each wanted attention, by layer."""
        caught: dict[int, tuple[Tensor, Tensor]] = {}
        with self._catching(caught), suppress(_Enough):
            self.decoder(input_ids, use_cache=False)
        return caught

    @contextmanager
    def _catching(self, caught: dict[int, tuple[Tensor, Tensor]]) -> Iterator[None]:
        last = max(self.attentions)

        def hook_of(index: int) -> Any:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
                inputs = kwargs.get("hidden_states", args[0] if args else None)
                assert inputs is not None
                caught[index] = (inputs, out[0] if isinstance(out, tuple) else out)
                if index == last:
                    raise _Enough

            return hook

        handles = [
            attention.register_forward_hook(hook_of(index), with_kwargs=True)
            for index, attention in self.attentions.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Enough(Exception):
    """The base need not run further."""


def _attention_of(block: Any) -> nn.Module:
    """Return a block's attention: `self_attn` in Llama and Qwen2, `attention` in GPT-NeoX."""
    attention: nn.Module = block.self_attn if hasattr(block, "self_attn") else block.attention
    return attention
