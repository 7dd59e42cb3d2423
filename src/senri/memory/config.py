"""Every knob of a memory, typed and checked: the nested `memory` section of `SenriConfig` and of the YAML presets."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from senri.errors import SenriError
from senri.memory.typed import check_at_least, check_types, from_mapping

Rule = Literal["linear", "delta", "gated_delta"]
FeatureMapName = Literal["elu_plus_one", "l2", "silu_l2", "dpfp"]
Normaliser = Literal["denominator", "rmsnorm"]
Granularity = Literal["segment", "token"]
Order = Literal["retrieve_then_update", "update_then_retrieve"]
Scope = Literal["sequence", "batch"]
Gradient = Literal["full", "segment", "none"]
Combine = Literal["gate", "add", "copy", "alone"]
Projections = Literal["shared", "own"]
Calibration = Literal["none", "whiten"]
StateOwner = Literal["layer", "shared"]

_OFF_AT_ZERO = ("short_convolution", "look_ahead", "write_delay", "write_budget", "clean_every")


@dataclass
class MemoryConfig:
    """What a memory is made of. `None` for a size means "as the base has it".

    Args:
        type: name in the memory registry (`senri.memory.MEMORIES`).
        options: what only this type of memory has, such as `num_memories` (its class's `Options`).
        state: `layer` gives every layer a state of its own; `shared` lets the first of these layers write one state
            that all of them read, each with its own query projection.
        combine: how a layer joins memory and local attention: `gate` (g * memory + (1 - g) * window, per head, one
            output projection), `add` (a branch with its own projections, added to the residual), `copy` (such a branch,
            whose reads are said at the language-model head and heard by no layer), `alone`.
        rule: how a write changes M: `linear`, `delta` or `gated_delta`.
        feature_map: phi, applied to keys and queries.
        dpfp_order: number of rolls of the DPFP map (its output is `2 * key_dim * dpfp_order` wide).
        normaliser: `denominator` divides a read by phi(q) z; `rmsnorm` normalises each head of the read.
        granularity: `segment` lets a write become visible at the end of its segment, `token` at once; the delta
            rules with `rmsnorm` are only stable with `token` (docs/memory.md).
        segment_length: tokens between two memory updates.
        order: `retrieve_then_update` reads before the own write is visible, `update_then_retrieve` after; both causal.
        scope: `sequence` (each row its own state) or `batch` (one state for all rows; updates averaged).
        gradient: `full` (through all segments), `segment` (the carried state is detached), `none` (writes get none).
        projections: `shared` reuses the layer's q/k/v, `own` gives the memory its own.
        num_heads: query heads of the memory; only with `own` projections.
        num_key_value_heads: key/value heads; only with `own` projections.
        key_dim: width of a key; only with `own` projections.
        value_dim: width of a value; only with `own` projections.
        whitened_inputs: the memory's own projections, strengths and gates see the layer's hidden states centred and
            whitened, by real text at conversion; only with `own` projections.
        token_inputs: they see each token's embedding beside its hidden state, which blurs which token it is of; only
            with `combine: copy`.
        token_shift: a token's key is made from the token before it ("what came before" -> "this").
        short_convolution: kernel size of a causal depthwise convolution on queries and keys; 0 for none.
        convolution_delays: shares of each head's channels that this convolution first delays by 0, 1, 2, ... tokens
            (keys one more with `token_shift`); with several shares a key holds the states of several tokens.
        convolution_mean: share of each head's channels, beside these, that starts as a mean of the last
            `short_convolution` tokens: what a sentence is about.
        convolution_dense: share of each head's channels, beside those, that are sums of linear maps: in a key of the
            token before, the token that is written and the next one, in a query of the token that asks, in both of the
            mean. What begins here, such channels tell from the key. Needs `token_shift` and `look_ahead`.
        convolution_mean_decay: factor of a token's weight in this mean from each token to the next, in (0, 1].
        convolution_gates: how much each share counts in a query or key, and each token in the mean, comes from the
            hidden state; all count 1 at the start.
        convolution_binds: the other shares of a query or key are multiplied by 1 + this mean, as strongly as a gate
            says: keys of other sentences are then less alike, however alike their words are. Needs `convolution_mean`.
        look_ahead: a token is written so many tokens later, and its key is made of those too: what a sentence is about
            may stand behind what it says. Needs `short_convolution`, which has so many taps more on keys.
        write_delay: a token is written so many tokens later still: a window holds it until then, and a question does
            not find itself. Both of these need `own` projections, and a state with room for so many tokens.
        learned_write_strength: beta comes from the hidden state; otherwise it is `write_strength`.
        convolved_write_strength: the logit of the learned beta is the larger of two weighted sums of those of the
            tokens around, over the taps of the keys' convolution: a sentence is worth keeping as a whole.
        write_strength_around: these sums start as means over a token and so many before it, and behind it; 0: as its
            own. At most `look_ahead`, and fewer than `short_convolution`.
        write_budget: once the strengths of all that was written add up to so much, the odds of a learned beta fall as
            budget / sum: what a long text writes would write over what was read early. 0: they never fall.
        write_strength: beta, or the start of the learned beta; in (0, 1].
        learned_read_strength: how strongly a read is added comes from the hidden state, per head and token; otherwise
            all of it is. Only with `combine: add` and `copy`, which needs it.
        read_strength: where the learned one starts, in (0, 1).
        copy_sharpness: where `combine: copy` starts: factor of the likeness of a read and a token's code, from -1 to 1.
        copy_turns: a token's code is turned in one of so many ways, by the token's place, so that reads of equal tokens
            in several places do not add up; a power of two, 1: not at all. Only with `combine: copy`.
        copy_prior: where it starts: the power of the model's own distribution by which what was found is multiplied.
        decay: alpha of `gated_delta` at the start (learned from the hidden state); in (0, 1).
        calibration: `whiten` centres and whitens queries and keys per head, set from real text at conversion.
        gate_init: logit of the gate at the start; strongly negative means closed.
        eps: smallest denominator; also the epsilon of norms; with a learned read strength the mean square of a read
            that counts as half found.
        clean_every: a session cleans its memory (SVD) every so many segments; 0 for never.
        clean_energy: share of squared singular values that cleaning keeps.
    """

    type: str = "tensor"
    options: dict[str, Any] = field(default_factory=dict)
    state: StateOwner = "layer"
    combine: Combine = "gate"
    rule: Rule = "linear"
    feature_map: FeatureMapName = "elu_plus_one"
    dpfp_order: int = 3
    normaliser: Normaliser = "denominator"
    granularity: Granularity = "segment"
    segment_length: int = 256
    order: Order = "retrieve_then_update"
    scope: Scope = "sequence"
    gradient: Gradient = "full"
    projections: Projections = "shared"
    num_heads: int | None = None
    num_key_value_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    whitened_inputs: bool = False
    token_inputs: bool = False
    token_shift: bool = False
    short_convolution: int = 0
    convolution_delays: list[float] = field(default_factory=lambda: [1.0])
    convolution_mean: float = 0.0
    convolution_dense: float = 0.0
    convolution_mean_decay: float = 0.92
    convolution_gates: bool = False
    convolution_binds: bool = False
    look_ahead: int = 0
    write_delay: int = 0
    learned_write_strength: bool = False
    convolved_write_strength: bool = False
    write_strength_around: int = 0
    write_budget: float = 0.0
    write_strength: float = 1.0
    learned_read_strength: bool = False
    read_strength: float = 0.9
    copy_sharpness: float = 28.0
    copy_turns: int = 1
    copy_prior: float = 0.0
    decay: float = 0.99
    calibration: Calibration = "none"
    gate_init: float = -4.0
    eps: float = 1e-6
    clean_every: int = 0
    clean_energy: float = 0.95

    def __post_init__(self) -> None:
        """Check every value and their combinations.

        Raises:
            SenriError: names the field, the value and what is allowed.
        """
        values = self._values()
        check_types(type(self), values, "memory")
        counts = ("dpfp_order", "segment_length", "num_heads", "num_key_value_heads", "key_dim", "value_dim")
        check_at_least("memory", {name: values[name] for name in counts}, 1)
        check_at_least(
            "memory",
            {name: values[name] for name in _OFF_AT_ZERO},
            0,
            " (0 is off)",
        )
        if self.short_convolution == 1:
            raise SenriError("memory.short_convolution is 1, but it must be 0 (off) or a kernel of at least 2.")
        shares = self.convolution_delays
        if not shares or not all(isinstance(share, (int, float)) and share >= 0 for share in shares) or not sum(shares):
            raise SenriError(f"memory.convolution_delays is {shares}, but it must be shares, of which one is above 0.")
        if len(shares) > max(self.short_convolution - int(self.token_shift), 1):
            raise SenriError(
                f"memory.convolution_delays has {len(shares)} shares, but memory.short_convolution "
                f"{self.short_convolution} has no room for such delays: raise it, or name fewer."
            )
        for name in ("convolution_mean", "convolution_dense"):
            if getattr(self, name) < 0:
                raise SenriError(f"memory.{name} is {getattr(self, name)}, but it must be 0 or above.")
        if self.convolution_dense and not (self.token_shift and self.look_ahead):
            raise SenriError(
                "memory.convolution_dense makes keys of a token, the one before and the next one: set "
                "memory.token_shift, and memory.look_ahead to at least 1."
            )
        if (self.convolution_mean or self.convolution_gates or self.look_ahead) and not self.short_convolution:
            raise SenriError(
                "memory.convolution_mean, memory.convolution_gates and memory.look_ahead belong to a convolution: set "
                "memory.short_convolution."
            )
        if self.convolution_binds and not self.convolution_mean:
            raise SenriError("memory.convolution_binds binds keys to a mean: set memory.convolution_mean above 0.")
        for name in ("write_strength", "decay", "clean_energy", "convolution_mean_decay"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise SenriError(f"memory.{name} is {getattr(self, name)}, but it must be above 0 and at most 1.")
        if self.learned_write_strength and self.write_strength == 1.0:
            raise SenriError(
                "memory.write_strength is 1.0, where a learned strength cannot start: take a value below 1."
            )
        if self.convolved_write_strength and not (self.learned_write_strength and self.short_convolution):
            raise SenriError(
                "memory.convolved_write_strength needs a learned strength and a convolution's taps: set "
                "memory.learned_write_strength and memory.short_convolution."
            )
        around, most = self.write_strength_around, min(self.look_ahead, max(self.short_convolution - 1, 0))
        if not 0 <= around <= most or (around and not self.convolved_write_strength):
            raise SenriError(
                f"memory.write_strength_around is {around}, but it must be 0, or with memory.convolved_write_strength "
                f"up to {most} (memory.look_ahead, and below memory.short_convolution)."
            )
        if self.write_budget and not self.learned_write_strength:
            raise SenriError(
                "memory.write_budget lowers learned strengths: set memory.learned_write_strength to true, or it to 0."
            )
        if self.rule == "gated_delta" and self.decay == 1.0:
            raise SenriError("memory.decay is 1.0, where a learned decay cannot start: take a value below 1.")
        if not 0.0 < self.read_strength < 1.0:
            raise SenriError(f"memory.read_strength is {self.read_strength}, but it must be above 0 and below 1.")
        if self.learned_read_strength and self.combine not in ("add", "copy"):
            raise SenriError(
                f"memory.learned_read_strength needs memory.combine 'add' or 'copy', but combine is {self.combine!r}: "
                f"set it to false, or combine to one of them."
            )
        if self.combine == "copy" and not self.learned_read_strength:
            raise SenriError(
                "memory.combine 'copy' says what was found as often as the read strength says: set "
                "memory.learned_read_strength to true."
            )
        if self.token_inputs and self.combine != "copy":
            raise SenriError(
                f"memory.token_inputs needs memory.combine 'copy', which knows the tokens, but combine is "
                f"{self.combine!r}: set memory.token_inputs to false."
            )
        if self.copy_sharpness <= 0:
            raise SenriError(f"memory.copy_sharpness is {self.copy_sharpness}, but it must be above 0.")
        if self.copy_turns < 1 or self.copy_turns.bit_count() != 1:
            raise SenriError(f"memory.copy_turns is {self.copy_turns}, but it must be a power of two (1 is off).")
        if self.copy_turns > 1 and self.combine != "copy":
            raise SenriError("memory.copy_turns turns codes of tokens: set memory.combine to 'copy', or it to 1.")
        if self.copy_prior < 0:
            raise SenriError(f"memory.copy_prior is {self.copy_prior}, but it must be 0 or above.")
        if self.learned_read_strength and self.normaliser != "rmsnorm":
            raise SenriError(
                f"memory.learned_read_strength goes by how large a normalised read is, but memory.normaliser is "
                f"{self.normaliser!r}: set it to 'rmsnorm'."
            )
        if self.eps <= 0:
            raise SenriError(f"memory.eps is {self.eps}, but it must be above 0.")
        if self.normaliser == "denominator" and self.feature_map in ("l2", "silu_l2"):
            raise SenriError(
                f"memory.normaliser 'denominator' needs features that are never negative ('elu_plus_one' or 'dpfp'), "
                f"but memory.feature_map is {self.feature_map!r}: take memory.normaliser 'rmsnorm'."
            )
        if self.scope == "batch" and self.granularity != "segment":
            raise SenriError(
                "memory.scope 'batch' shares one state between rows and needs memory.granularity 'segment'."
            )
        if self.combine in ("add", "copy") and self.projections != "own":
            raise SenriError(
                f"memory.combine {self.combine!r} keeps the base whole and needs memory.projections 'own'."
            )
        if self.state == "shared" and self.projections != "own":
            raise SenriError(
                "memory.state 'shared' lets layers read another layer's keys, which takes query projections of their "
                "own: set memory.projections 'own'."
            )
        if self.tokens_late and self.projections != "own":
            raise SenriError(
                "memory.look_ahead and memory.write_delay need projections of the memory's own: set memory.projections "
                "'own', or leave them out."
            )
        if self.whitened_inputs and self.projections != "own":
            raise SenriError(
                "memory.whitened_inputs needs projections of the memory's own: set memory.projections 'own', or leave "
                "memory.whitened_inputs out."
            )
        sizes = ("num_heads", "num_key_value_heads", "key_dim", "value_dim")
        given = [name for name in sizes if getattr(self, name) is not None]
        if self.projections == "shared" and given:
            raise SenriError(
                f"memory.{given[0]} is set, but shared projections have the base's sizes: use memory.projections 'own'."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MemoryConfig":
        """Build from a mapping such as a YAML section.

        Raises:
            SenriError: an unknown key (with the nearest known one) or a wrong value.
        """
        return from_mapping(cls, values, "memory")

    @property
    def tokens_late(self) -> int:
        """How many tokens later than it is read a token is written."""
        return self.look_ahead + self.write_delay

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain data, ready for JSON or YAML."""
        return dataclasses.asdict(self)

    def _values(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
