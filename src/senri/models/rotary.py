"""Rotary positions that stay exact however long a session grows."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import dynamic_rope_update
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

EXACT_POSITIONS = 65_536
"""Below this the angles are the base's own, bit for bit. A float32 angle loses a whole radian near position 2^24, so
the part of a position above a multiple of this is reduced to one turn in float64 first."""


class SenriRotaryEmbedding(GPTNeoXRotaryEmbedding):
    """Cosines and sines for (partial) rotary embedding; for Llama the rotary part is the whole head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, `[batch, seq, rotary_dim]` each, in x's dtype.

        Args:
            x: only its device and dtype are used.
            position_ids: `[batch, seq]`.
        """
        frequencies = self.inv_freq.to(device=x.device, dtype=torch.float)
        low = position_ids % EXACT_POSITIONS
        angles = low[..., None].float() * frequencies + self._whole_blocks(position_ids - low, frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        scaling: Any = self.attention_scaling
        return (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)

    @staticmethod
    def _whole_blocks(positions: Tensor, frequencies: Tensor) -> Tensor:
        # Apple's GPUs have no float64; this is a [batch, seq] computation, cheap anywhere.
        device = torch.device("cpu") if positions.device.type == "mps" else positions.device
        angles = positions.to(device, torch.float64)[..., None] * frequencies.to(device, torch.float64)
        return torch.remainder(angles, 2 * math.pi).to(frequencies.device, torch.float)
