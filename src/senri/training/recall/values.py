"""Values: what a memory says of what it found, learnt before it has to find anything.

A read that found exactly one token gives that token's value, normalised. So here every position of plain text is handed
the value of the token that follows, without a state, a key or a write, and the model must say that token. Each token of
the text is a target, instead of a few answers at the end of a sample, and recall training then starts with a memory
whose finds are heard.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.branch import MemoryBranch
from senri.memory.reading import normalise
from senri.mixers.added_memory import AddedMemory
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.objective import Objective
from senri.training.rows import TrainingRows


class Stretches:
    """Makes batches for `ValueDecoding`: plain text, with what enters the first trained layer; the trainer's collator.

    Args:
        rows: the text, with the outputs of the frozen layers.
        tokens: of a stretch.
        seed: of where stretches begin.

    Raises:
        SenriError: the rows bring no states, or less text than a stretch.
    """

    def __init__(self, rows: TrainingRows, tokens: int, seed: int) -> None:
        if rows.frozen_base is None:
            raise SenriError("the loss values starts from the outputs of frozen layers: set training.frozen_base=true.")
        self._rows, self._base, self.tokens, self._seed = rows, rows.frozen_base, tokens, seed
        self._last = len(rows) * len(rows.tokens[0]) - tokens
        if self._last < 0:
            raise SenriError(
                f"the training text is shorter than training.recall.values.tokens {tokens}: give more text."
            )

    def __call__(self, items: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """Return `states` `[batch, seq, hidden]` and `ids` `[batch, seq]` of some numbered stretches."""
        starts = [random.Random(f"{self._seed}-{item['number']}").randint(0, self._last) for item in items]
        return {
            "states": torch.stack([self._base.stretch(start, self.tokens) for start in starts]),
            "ids": torch.stack([self._rows.stretch(start, self.tokens) for start in starts]),
        }


class ValueDecoding(Objective):
    """What the trainer runs: stretches of plain text in, the loss of the tokens that were handed over out.

    Args:
        model: a Senri model; its memories must be added to the layers' attention.
        start_layer: the layer that the states enter.
        interference: largest share of another token's value in what is found, beside 1 of the right one.

    Raises:
        SenriError: a memory of another kind.
    """

    def __init__(self, model: SenriForCausalLM, start_layer: int, interference: float) -> None:
        super().__init__(model)
        self.start_layer, self.interference = start_layer, interference
        self.layers = sorted(model.model.memory_branches())
        for index in self.layers:
            mixer: Any = model.model.layers[index].self_attn
            right = isinstance(mixer, AddedMemory) and isinstance(mixer.memory, MemoryBranch)
            config = mixer.memory.config
            if not right or config.projections != "own" or config.normaliser != "rmsnorm":
                raise SenriError(
                    f"the loss values needs memories that are added to attention, with own projections and the "
                    f"normaliser rmsnorm, but layer {index} has another kind: leave its stage out."
                )

    def forward(self, states: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and `correct`, the share of tokens that are the likeliest.

        Args:
            states: `[batch, seq, hidden]`, what enters `start_layer`.
            ids: `[batch, seq]`, the tokens.
        """
        with self._handing_over():
            hidden = self.model.model(inputs_embeds=states, start_layer=self.start_layer, use_cache=False)
        logits = self.model.lm_head(hidden.last_hidden_state[:, :-1]).float()
        targets = ids[:, 1:]
        return {
            "loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
            "correct": (logits.argmax(-1) == targets).float().mean().detach(),
        }

    def found(self, index: int, hidden_states: Tensor) -> Tensor:
        """Return what a layer's memory would read at each token if it found the next one: `[batch, seq, heads, dim]`.

        The last token finds nothing.
        """
        branch: Any = self._mixer(index).memory
        values = branch.inputs(hidden_states, branch.init_state(len(hidden_states), hidden_states.device))[0].v
        values = values.repeat_interleave(branch.num_heads // branch.num_key_value_heads, dim=1)
        others = values.flatten(0, 2)[torch.randperm(values[..., 0].numel(), device=values.device)].view_as(values)
        share = self.interference * torch.rand(values[:, :1, :, :1].shape, device=values.device)
        read = F.pad((values + share * others)[:, :, 1:], (0, 0, 0, 1))
        weight: Tensor = branch.memory.norm_weight
        return normalise(read, weight, branch.config).transpose(1, 2)

    @torch.no_grad()
    def solve(self, batches: Sequence[dict[str, Tensor]], ridge: float, loudness: float) -> None:
        """Set output projections that are still zero, in closed form: a value points to its token's place in the head.

        Least squares from what is found to the row of the language-model head that stands for the token, as the last
        norm weighs it, less the mean row.

        Args:
            batches: stretches of text.
            ridge: of the least squares, as a share of the mean square of what is found.
            loudness: root mean square of what is added, as a share of that of the layer's own states.
        """
        head = self.model.lm_head.weight.float()
        rows = (head - head.mean(0)) * cast(Tensor, self.model.model.norm.weight).float()
        last = self.layers[-1]
        for index in self.layers:
            mixer = self._mixer(index)
            if bool(mixer.memory_o_proj.weight.any()):
                continue
            size = mixer.memory_o_proj.in_features
            gram, moments, power, count = torch.zeros(size, size), torch.zeros(size, len(rows[0])), 0.0, 0
            for batch in batches:
                caught: dict[int, Tensor] = {}
                with self._catching(caught):
                    self.model.model(
                        inputs_embeds=batch["states"],
                        start_layer=self.start_layer,
                        use_cache=False,
                        stop_layer=last + 1,
                    )
                states = caught[index]
                features = self._heard(index, states)[:, :-1].flatten(0, 1).float()
                gram += (features.T @ features).cpu()
                moments += (features.T @ rows[batch["ids"][:, 1:].flatten()]).cpu()
                power += float(states.float().square().mean()) * len(features)
                count += len(features)
            weight = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(size), moments).T
            mean_square = float(((weight @ gram) * weight).sum()) / (count * len(weight))
            weight = weight * loudness * (power / count / mean_square) ** 0.5
            mixer.memory_o_proj.weight.copy_(weight)

    def _mixer(self, index: int) -> Any:
        return self.model.model.layers[index].self_attn

    def _heard(self, index: int, states: Tensor) -> Tensor:
        """Return what enters a layer's output projection, from what enters the layer: `[batch, seq, heads x dim]`."""
        layer: Any = self.model.model.layers[index]
        hidden_states = layer.input_layernorm(states)
        found = self.found(index, hidden_states)
        if hasattr(layer.self_attn, "memory_read"):
            found = layer.self_attn.memory_read(found, hidden_states)
        return found.flatten(2).to(states.dtype)

    @contextmanager
    def _catching(self, caught: dict[int, Tensor]) -> Iterator[None]:
        """Keep what enters each layer with a memory."""

        def keep(index: int) -> Any:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                caught[index] = args[0] if args else kwargs["hidden_states"]

            return hook

        handles = [
            self.model.model.layers[index].register_forward_pre_hook(keep(index), with_kwargs=True)
            for index in self.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _handing_over(self) -> Iterator[None]:
        """Put what would be found in the place of what the memories read."""
        caught: dict[int, Tensor] = {}

        def replace(index: int) -> Any:
            return lambda _module, _args: (self._heard(index, caught[index]),)

        with self._catching(caught):
            handles = [
                self._mixer(index).memory_o_proj.register_forward_pre_hook(replace(index)) for index in self.layers
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
