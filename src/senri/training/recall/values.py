"""Values: what a memory says of what it found, learnt before it has to find anything.

A read that found exactly one token gives that token's value, normalised. So here every position of plain text is handed
the value of the token that follows, without a state, a key or a write, and the model must say that token. Each token of
the text is a target, instead of a few answers at the end of a sample, and recall training then starts with a memory
whose finds are heard.
"""

import random
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.memory.branch import MemoryBranch
from senri.memory.calibration import RunningMoments
from senri.memory.reading import normalise
from senri.mixers.added_memory import AddedMemory
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.frozen_base import lower_states
from senri.training.objective import Objective
from senri.training.recall.config import ValuesConfig
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
        model: a Senri model with one memory, which must be added to the layer's attention.
        start_layer: the memory's layer.
        interference: largest share of another token's value in what is found, beside 1 of the right one.
        faintest: what is found is as loud as a whole value or fainter, down to this share.

    Raises:
        SenriError: a memory of another kind, or several.
    """

    def __init__(
        self, model: SenriForCausalLM, start_layer: int, interference: float = 0.0, faintest: float = 1.0
    ) -> None:
        super().__init__(model)
        self.start_layer, self.interference, self.faintest = start_layer, interference, faintest
        check_added_memory(model, start_layer, "values")

    def forward(self, states: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and `correct`, the share of tokens that are the likeliest.

        Args:
            states: `[batch, seq, hidden]`, what enters `start_layer` within the whole text: values are made of it.
            ids: `[batch, seq]`, the tokens; they are run after nothing else, as a question is after its text was read.
        """
        asking = self._asking(ids)
        heard = self._heard(states, asking)
        handle = self._mixer.memory_o_proj.register_forward_pre_hook(lambda _module, _args: (heard,))
        try:
            hidden = self.model.model(inputs_embeds=asking, start_layer=self.start_layer, use_cache=False)
        finally:
            handle.remove()
        logits = self.model.lm_head(hidden.last_hidden_state[:, :-1]).float()
        targets = ids[:, 1:]
        return {
            "loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
            "correct": (logits.argmax(-1) == targets).float().mean().detach(),
        }

    def found(self, hidden_states: Tensor) -> Tensor:
        """Return what the memory would read at each token if it found the next one: `[batch, seq, heads, value_dim]`.

        The last token finds nothing.

        Args:
            hidden_states: `[batch, seq, hidden]`, the mixer's input.
        """
        branch: Any = self._mixer.memory
        values = branch.inputs(hidden_states, branch.init_state(len(hidden_states), hidden_states.device))[0].v
        values = values.repeat_interleave(branch.num_heads // branch.num_key_value_heads, dim=1)
        others = values.flatten(0, 2)[torch.randperm(values[..., 0].numel(), device=values.device)].view_as(values)
        share = self.interference * torch.rand(values[:, :1, :, :1].shape, device=values.device)
        loudness = self.faintest + (1 - self.faintest) * torch.rand(share.shape, device=values.device)
        read = F.pad((loudness * (values + share * others))[:, :, 1:], (0, 0, 0, 1))
        weight: Tensor = branch.memory.norm_weight
        return normalise(read, weight, branch.config).transpose(1, 2)

    @torch.no_grad()
    def solve(self, batches: Sequence[dict[str, Tensor]], config: ValuesConfig, seed: int) -> None:
        """Set the start of a memory that has learnt nothing, in closed form; one that has is left as it is.

        Queries and keys: a token's state in a question finds its state in the text (`initialise_from_pairs`). Output
        projection: a value points to its token's row of the language-model head, as the last norm weighs it, less the
        mean row (least squares).

        Args:
            batches: stretches of text.
            config: settings.
            seed: of the random turn of queries and keys.
        """
        mixer = self._mixer
        if bool(mixer.memory_o_proj.weight.any()):
            return
        rows = self.model.lm_head.weight.float()
        rows = (rows - rows.mean(0)) * cast(Tensor, self.model.model.norm.weight).float()
        size = mixer.memory_o_proj.in_features
        gram, moments, power, count = torch.zeros(size, size), torch.zeros(size, rows.shape[1]), 0.0, 0
        pairs = RunningMoments()
        for batch in batches:
            states, asking = batch["states"], self._asking(batch["ids"])
            both = torch.cat([self._layer.input_layernorm(states), self._layer.input_layernorm(asking)], dim=-1)
            pairs.update(both[:, config.solve_context :].flatten(0, 1).cpu())
            features = self._heard(states, asking)[:, :-1].flatten(0, 1).float()
            gram += (features.T @ features).cpu()
            moments += (features.T @ rows[batch["ids"][:, 1:].flatten()]).cpu()
            power += float(states.float().square().mean()) * len(features)
            count += len(features)
        generator = torch.Generator().manual_seed(seed)
        mixer.memory.inputs.initialise_from_pairs(pairs.mean, pairs.covariance, generator)
        weight = torch.linalg.solve(gram + config.ridge * gram.diagonal().mean() * torch.eye(size), moments).T
        mean_square = float(((weight @ gram) * weight).sum()) / (count * len(weight))
        mixer.memory_o_proj.weight.copy_(weight * config.loudness * (power / count / mean_square) ** 0.5)

    @property
    def _layer(self) -> Any:
        return self.model.model.layers[self.start_layer]

    @property
    def _mixer(self) -> Any:
        return self._layer.self_attn

    def _asking(self, ids: Tensor) -> Tensor:
        """Return what enters the memory's layer after these tokens alone, `[batch, seq, hidden]`."""
        return lower_states(self.model, ids, self.start_layer, ids.shape[1])

    def _heard(self, states: Tensor, asking: Tensor) -> Tensor:
        """Return what enters the output projection, `[batch, seq, heads x value_dim]`."""
        found = self.found(self._layer.input_layernorm(states))
        if hasattr(self._mixer, "memory_read"):
            found = self._mixer.memory_read(found, self._layer.input_layernorm(asking))
        return found.flatten(2)


def check_added_memory(model: SenriForCausalLM, start_layer: int, loss: str) -> None:
    """Check that a model has one memory, of the kind that is trained without the layers above.

    Args:
        model: a Senri model.
        start_layer: where the memory must be.
        loss: for the error.

    Raises:
        SenriError: a memory of another kind, or several.
    """
    layers = sorted(model.model.memory_branches())
    mixer: Any = model.model.layers[start_layer].self_attn
    right = isinstance(mixer, AddedMemory) and isinstance(mixer.memory, MemoryBranch) and layers == [start_layer]
    if not right or mixer.memory.config.projections != "own" or mixer.memory.config.normaliser != "rmsnorm":
        raise SenriError(
            f"the loss {loss} needs one memory that is added to attention, with own projections and the normaliser "
            f"rmsnorm, but the model has another kind in its layers {layers}: leave the stage out."
        )
