"""Values: what a memory says of what it found, learnt before it has to find anything.

A read that found exactly one token gives that token's value, normalised. So here every position of plain text is handed
the value of the token that follows, without a state, a key or a write, and the model must say that token. Each token of
the text is a target, instead of a few answers at the end of a sample, and recall training then starts with a memory
whose finds are heard.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.data.facts import FactMaker
from senri.data.packing import tokens_of
from senri.errors import SenriError
from senri.memory.branch import MemoryBranch
from senri.memory.calibration import RunningMoments
from senri.memory.channels import split_heads
from senri.memory.input_starts import start_from_pairs, start_values
from senri.memory.reading import normalise
from senri.mixers.added_memory import AddedMemory
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.frozen_base import lower_states
from senri.training.objective import Objective
from senri.training.recall.config import ValuesConfig, WindowConfig
from senri.training.recall.window import Window
from senri.training.rows import TrainingRows


class Stretches:
    """Makes batches for `ValueDecoding`: stretches of text, and the window that they are said behind; the trainer's
    collator.

    Args:
        rows: the text.
        tokenizer: that made its tokens.
        config: settings.
        window: of what stands before a stretch when it is said.
        kinds: of facts, with their weights.
        seed: of everything that is drawn.

    Raises:
        SenriError: layers below the memory are not frozen, or less text than a stretch or a window.
    """

    def __init__(
        self,
        rows: TrainingRows,
        tokenizer: Any,
        config: ValuesConfig,
        window: WindowConfig,
        kinds: Mapping[str, float],
        seed: int,
    ) -> None:
        if rows.frozen_base is None:
            raise SenriError("the loss values starts from the outputs of frozen layers: set training.frozen_base=true.")
        self._rows, self._tokenizer, self._config, self._window, self._seed = rows, tokenizer, config, window, seed
        self._kinds, self._weights = [*kinds], [*kinds.values()]
        self._tokens = len(rows) * len(rows.tokens[0])
        self.tokens = config.tokens
        if (most := max(config.context + config.tokens, window.longest)) >= self._tokens:
            raise SenriError(
                f"the training text has {self._tokens} tokens, too few for the {most} of a stretch or a window "
                f"(training.recall.values, training.recall.window): give more text."
            )

    def __call__(self, items: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """Return `ids` `[batch, context + tokens]` of some numbered stretches, and `window` `[1, window]` tokens."""
        numbers = [item["number"] for item in items]
        stretches = [self._stretch(random.Random(f"{self._seed}-{number}")) for number in numbers]
        rng = random.Random(f"{self._seed}-{numbers[0]}-window")
        return {"ids": torch.stack(stretches), "window": self._some(self._window.draw(rng), rng)[None]}

    def _stretch(self, rng: random.Random) -> Tensor:
        config = self._config
        if rng.random() >= config.facts_share:
            return self._some(config.context + config.tokens, rng)
        facts: list[int] = []
        while len(facts) < config.tokens:
            kind = rng.choices(self._kinds, self._weights)
            sentence = FactMaker("train", kind).make(rng, 1)[0].sentence
            facts += tokens_of(f" {sentence}", self._tokenizer)
        return torch.cat([self._some(config.context, rng), torch.tensor(facts[: config.tokens])])

    def _some(self, count: int, rng: random.Random) -> Tensor:
        return self._rows.stretch(rng.randrange(self._tokens - count), count)


class ValueDecoding(Objective):
    """What the trainer runs: stretches of plain text in, the loss of the tokens that were handed over out.

    Args:
        model: a Senri model with one memory, which must be added to the layer's attention.
        start_layer: the memory's layer.
        context: tokens at the beginning of a stretch that are only there to be attended to.
        interference: largest share of another token's value in what is found, beside 1 of the right one.
        faintest: what is found is as loud as a whole value or fainter, down to this share.

    Raises:
        SenriError: a memory of another kind, or several.
    """

    def __init__(
        self,
        model: SenriForCausalLM,
        start_layer: int,
        context: int,
        interference: float = 0.0,
        faintest: float = 1.0,
    ) -> None:
        super().__init__(model)
        self.context = context
        self.start_layer, self.interference, self.faintest = start_layer, interference, faintest
        check_branch(model, start_layer, "values", AddedMemory)
        self.register_buffer("mean", torch.zeros(model.config.hidden_size), persistent=False)
        self.mean: Tensor

    def forward(self, ids: Tensor, window: Tensor) -> dict[str, Tensor]:
        """Return `loss`, a scalar, and `correct`, the share of tokens that are the likeliest.

        Args:
            ids: `[batch, context + seq]`, tokens of which the last are said.
            window: `[1, window]`, tokens that they are said behind, as a question is asked behind some other text.
        """
        self._centre_values()
        asking, read = self._asking(ids, window)
        heard = self._heard(self._in_text(ids))
        cache = read.upper()
        cache.batch_repeat_interleave(len(asking))
        handle = self._mixer.memory_o_proj.register_forward_pre_hook(lambda _module, _args: (heard,))
        run = {"start_layer": self.start_layer, "past_key_values": cache, "use_cache": True}
        try:
            hidden = self.model.model(
                inputs_embeds=asking, position_ids=read.positions_behind(*asking.shape[:2]), **run
            )
        finally:
            handle.remove()
        logits = self.model.lm_head(hidden.last_hidden_state[:, :-1]).float()
        targets = ids[:, self.context + 1 :]
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
        values = F.linear(branch.inputs.seen(hidden_states) - self.mean, branch.inputs.v_proj.weight)
        values = split_heads(values, branch.num_key_value_heads)
        values = values.repeat_interleave(branch.num_heads // branch.num_key_value_heads, dim=1)
        others = values.flatten(0, 2)[torch.randperm(values[..., 0].numel(), device=values.device)].view_as(values)
        share = self.interference * torch.rand(values[:, :1, :, :1].shape, device=values.device)
        loudness = self.faintest + (1 - self.faintest) * torch.rand(share.shape, device=values.device)
        read = F.pad((loudness * (values + share * others))[:, :, 1:], (0, 0, 0, 1))
        weight: Tensor = branch.memory.norm_weight
        return normalise(read, weight, branch.config).transpose(1, 2)

    @torch.no_grad()
    def solve(self, batches: Sequence[dict[str, Tensor]], config: ValuesConfig, seed: int) -> None:
        """Find the mean state, and set the start of a memory that has learnt nothing, in closed form.

        Values are those of states less the mean state, all through the stage: a mean that all values share is what a
        delta rule erases at one token and adds at the next one, and makes reads as large where nothing was found.

        Values: what in a state tells which token it is of (`start_values`). Queries and keys: a token's state in a
        question finds its state in the text (`start_from_pairs`). Output projection: a value points to its token's
        row of the language-model head, as the last norm weighs it, less the mean row (least squares).

        Args:
            batches: stretches of text.
            config: settings.
            seed: of the random turn of queries and keys.
        """
        mixer = self._mixer
        text = [self._in_text(batch["ids"]) for batch in batches]
        inputs = torch.cat([self._seen(states).flatten(0, 1).float() for states in text])
        self.mean = inputs.mean(0)
        if bool(mixer.memory_o_proj.weight.any()):
            return
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.cat([batch["ids"][:, self.context :].flatten() for batch in batches])
        start_values(mixer.memory.inputs, inputs, tokens, generator)
        rows = self.model.lm_head.weight.float()
        rows = (rows - rows.mean(0)) * cast(Tensor, self.model.model.norm.weight).float()
        size = mixer.memory_o_proj.in_features
        gram, moments, power, count = torch.zeros(size, size), torch.zeros(size, rows.shape[1]), 0.0, 0
        pairs = RunningMoments()
        for batch, states in zip(batches, text, strict=True):
            asking, _ = self._asking(batch["ids"], batch["window"])
            targets = batch["ids"][:, self.context + 1 :]
            both = torch.cat([self._seen(states), self._seen(asking)], dim=-1)
            pairs.update(both[:, config.solve_context :].flatten(0, 1).cpu())
            features = self._heard(states)[:, :-1].flatten(0, 1).float()
            gram += (features.T @ features).cpu()
            moments += (features.T @ rows[targets.flatten()]).cpu()
            power += float(states.float().square().mean()) * len(features)
            count += len(features)
        start_from_pairs(mixer.memory.inputs, pairs.mean, pairs.covariance, generator)
        weight = torch.linalg.solve(gram + config.ridge * gram.diagonal().mean() * torch.eye(size), moments).T
        mean_square = float(((weight @ gram) * weight).sum()) / (count * len(weight))
        mixer.memory_o_proj.weight.copy_(weight * config.loudness * (power / count / mean_square) ** 0.5)

    @property
    def _layer(self) -> Any:
        return self.model.model.layers[self.start_layer]

    @property
    def _mixer(self) -> Any:
        return self._layer.self_attn

    def _seen(self, states: Tensor) -> Tensor:
        """Return what the memory's projections see of states that enter the layer."""
        seen: Tensor = self._mixer.memory.inputs.seen(self._layer.input_layernorm(states))
        return seen

    def _in_text(self, ids: Tensor) -> Tensor:
        """Return what enters the memory's layer in stretches behind their context, `[batch, seq, hidden]`."""
        return lower_states(self.model, ids, self.start_layer, ids.shape[1])[:, self.context :]

    def _asking(self, ids: Tensor, window: Tensor) -> tuple[Tensor, Window]:
        """Return what enters the memory's layer behind a window, `[batch, seq, hidden]`, and the window."""
        read = Window(self.model, window, self.start_layer)
        return read.lower(ids[:, self.context :]), read

    @torch.no_grad()
    def _centre_values(self) -> None:
        projection = self._mixer.memory.inputs.v_proj
        projection.bias.copy_(-(projection.weight @ self.mean))

    def _heard(self, states: Tensor) -> Tensor:
        """Return what enters the output projection, `[batch, seq, heads x value_dim]`.

        A read strength that has learnt to be silent in plain text would make the projection loud.
        """
        found = self.found(self._layer.input_layernorm(states))
        if hasattr(self._mixer, "memory_read"):
            found = self._mixer.memory_read.when_asked(found)
        return found.flatten(2)


def check_branch(model: SenriForCausalLM, start_layer: int, loss: str, *kinds: type) -> None:
    """Check that a model has one memory, of a kind that is trained without the layers above.

    Args:
        model: a Senri model.
        start_layer: where the memory must be.
        loss: for the error.
        kinds: of its mixer.

    Raises:
        SenriError: a memory of another kind, or several.
    """
    layers = sorted(model.model.memory_branches())
    mixer: Any = model.model.layers[start_layer].self_attn
    branch: Any = getattr(mixer, "memory", None)
    right = isinstance(mixer, kinds) and isinstance(branch, MemoryBranch) and layers == [start_layer]
    if not right or branch.config.projections != "own" or branch.config.normaliser != "rmsnorm":
        raise SenriError(
            f"the loss {loss} needs one memory beside attention (memory.combine add, or copy for finding), with "
            f"own projections and the normaliser rmsnorm, but the model has another kind in its layers {layers}: "
            f"leave the stage out."
        )
