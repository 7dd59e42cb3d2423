"""What associative_recall.py measures: pairs of a text, memories of equal bytes, and the share found again."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.memory import MEMORIES, MemoryConfig, build_memory
from senri.memory.calibration import RunningMoments, whitening_matrix
from senri.memory.features import apply_feature_map

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tensor": ("tensor", {}),
    "multi": ("multi", {"num_memories": 4, "routing": "round_robin"}),
    "multi, learned": ("multi", {"num_memories": 4, "routing": "learned"}),
    "hierarchical": ("hierarchical", {"num_memories": 4}),
    "orthogonal": ("orthogonal", {"top_k": None}),
}
"""Memories by the name in the table: type and options. A registered type that is missing runs with its defaults."""

RULES = ("linear", "delta")  # gated_delta without decay is delta
NORMALISERS = {"elu_plus_one": "denominator", "l2": "rmsnorm", "silu_l2": "rmsnorm", "dpfp": "rmsnorm"}
DPFP_ORDER = 3
PAIRS = (16, 32, 64, 128, 256, 512, 1024)
TARGETS = {64: 0.95, 128: 0.85}
"""Recall that the best memory must reach without training, by number of pairs."""
BEST = ("tensor", "delta", "dpfp", "calibrated")
BASELINE_PAIRS = 64  # where every calibrated memory must beat the raw ELU+1 baseline
RUN_PAIRS = (16, 32, 64, 128, 256)
SEGMENT = 16  # tokens until the next of several memories has its turn: all four take part from 64 pairs on
TOKENS_PER_COLUMN, FEWEST_DRAWS = 2048, 2  # large numbers of pairs need fewer draws for the same certainty
NOISY_PAIRS = 128
NOISE = 0.5
"""Length of a noisy query's disturbance as a share of the whitened key's length: their cosine is about 0.89."""
TWIN = 0.9999  # keys with a larger cosine cannot be told apart by any memory
CLOSE = 0.95  # values with a larger cosine are easily confused
FEATURES_AFTER = "dpfp, whitened"
HEADS_MAPS = ("elu_plus_one", "l2")

Vectors = Tensor
"""`[heads, tokens, dim]`."""


@dataclass(frozen=True)
class Recorded:
    """What one layer saw of a stretch of text: keys and values per head, and the attention's input as one head."""

    keys: Vectors
    values: Vectors
    hidden: Vectors
    ids: Tensor


@dataclass
class Row:
    """One memory of the table: `found` is the recall by column name, `draws` the same for every draw of pairs."""

    memory: str
    rule: str
    feature_map: str
    keys: str
    key_dim: int
    state: int
    found: dict[str, float] = field(default_factory=dict)
    draws: dict[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> tuple[str, str, str, str]:
        return self.memory, self.rule, self.feature_map, self.keys


@dataclass(frozen=True)
class Trial:
    """One column of the table: which tokens are the pairs, `[draws, pairs]`, and the disturbance of the queries."""

    column: str
    index: Tensor
    noise: Tensor | None = None

    def take(self, vectors: Vectors) -> Tensor:
        """Return `[draws, heads, pairs, dim]`."""
        return vectors[:, self.index].transpose(0, 1)


@torch.no_grad()
def record(model: Any, pieces: Sequence[Tensor], layer: int) -> Recorded:
    """Run the base up to a layer and keep its keys before rotary positions, its values and its input."""
    attention, kept = model.layers[layer].self_attn, {"k_proj": [], "v_proj": [], "hidden": []}

    def keep(name: str) -> Callable[[Any, tuple[Tensor], Tensor], None]:
        def hook(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            kept[name].append(output[0])
            if name == "k_proj":
                kept["hidden"].append(inputs[0][0])

        return hook

    hooks = [getattr(attention, name).register_forward_hook(keep(name)) for name in ("k_proj", "v_proj")]
    for piece in pieces:
        model(input_ids=piece, use_cache=False)
    for hook in hooks:
        hook.remove()
    joined = {name: torch.cat(parts) for name, parts in kept.items()}
    keys, values = (
        joined[name].unflatten(1, (-1, attention.head_dim)).transpose(0, 1).contiguous()
        for name in ("k_proj", "v_proj")
    )
    return Recorded(keys, values, joined["hidden"].unsqueeze(0), torch.cat([piece[0] for piece in pieces]))


def moments(vectors: Vectors) -> tuple[Tensor, Tensor]:
    """Return mean `[heads, 1, dim]` and whitening `[heads, dim, dim]` of a calibration text's vectors."""
    running = RunningMoments()
    running.update(vectors)
    return running.mean.float().unsqueeze(1), whitening_matrix(running.covariance).float()


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """Return `[rows, columns]` with orthonormal rows, or columns if they are fewer; the identity if it is square."""
    if rows == columns:
        return torch.eye(rows)
    generator = torch.Generator().manual_seed(seed)
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(tall)[0].float()
    return basis if rows > columns else basis.T


def make_trials(tokens: int, options: argparse.Namespace, heads: int, key_dim: int) -> list[Trial]:
    """Draw the pairs of all columns; each number of pairs has its own seed."""
    trials = []
    for place, pairs in enumerate(PAIRS):
        generator = torch.Generator().manual_seed(options.seed + place)
        draws = max(FEWEST_DRAWS, min(options.draws, TOKENS_PER_COLUMN // pairs))
        spread = [torch.randperm(tokens, generator=generator)[:pairs].sort()[0] for _ in range(draws)]
        starts = torch.randint(tokens - pairs + 1, (draws, 1), generator=generator)
        trials.append(Trial(f"{pairs}", torch.stack(spread)))
        if pairs in RUN_PAIRS:
            trials.append(Trial(f"run {pairs}", starts + torch.arange(pairs)))
        if pairs == NOISY_PAIRS:
            noise = torch.randn(draws, heads, pairs, key_dim, generator=generator)
            trials.append(Trial(f"noisy {pairs}", torch.stack(spread), noise * NOISE / key_dim**0.5))
    return trials


def recall(read: Tensor, values: Tensor) -> Tensor:
    """Return the share of reads `[draws, heads, pairs, dim]` that lie nearest to their own value, by draw."""
    cosine = F.normalize(read, dim=-1) @ F.normalize(values, dim=-1).transpose(-1, -2)
    own = torch.arange(values.shape[-2])
    return (cosine.argmax(dim=-1) == own).float().mean(dim=(1, 2))


def state_bytes_per_head(memory: Any) -> int:
    """Return the bytes of M and z, of all parts when all are in use, per key/value head."""
    state = memory.allocate(memory.init_state(1))
    tensors = [state[name] for name in ("M", "z") if name in state]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) // memory.num_key_value_heads


def build(config: MemoryConfig, heads: int, key_dim: int, value_dim: int) -> Any:
    torch.manual_seed(0)  # of parameters that start at random
    return build_memory(config, heads * key_dim, heads, heads, key_dim, value_dim).eval()


def largest_that_fits(config: MemoryConfig, heads: int, value_dim: int, budget: int) -> Any:
    """Build the memory with the largest key width whose state fits the budget (bytes per head)."""

    def fits(key_dim: int) -> bool:
        return state_bytes_per_head(build(config, heads, key_dim, value_dim)) <= budget

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise SenriError(f"no key width fits {budget:,} bytes per head")
    return build(config, heads, low, value_dim)


def memory_config(kind: str, rule: str, feature_map: str) -> MemoryConfig:
    registered, options = KINDS.get(kind, (kind, {}))
    return MemoryConfig(
        type=registered,
        rule=rule,
        feature_map=feature_map,
        dpfp_order=DPFP_ORDER,
        normaliser=NORMALISERS[feature_map],
        granularity="token",
        segment_length=SEGMENT,
        options=options,
    )


def ask(memory: Any, keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """Write all pairs in one run into an empty memory and read the queries from it."""
    return memory.read(queries, memory.write(keys, values, memory.init_state(keys.shape[0])))


@dataclass(frozen=True)
class Bench:
    """The recorded pairs, raw and calibrated, and everything that fills a row."""

    pairs: Recorded
    calibration: Recorded
    trials: Sequence[Trial]
    budget: int
    seed: int

    @cached_property
    def calibrated(self) -> tuple[Tensor, Tensor, Tensor, Vectors]:
        """Mean, whitening and its inverse from the calibration text, and the whitened keys of the pairs."""
        mean, whitening = moments(self.calibration.keys)
        return mean, whitening, torch.linalg.inv(whitening), (self.pairs.keys - mean) @ whitening

    @torch.no_grad()
    def fill(self, row: Row, respond: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Row:
        """Run every column: `respond(keys, values, queries)` gives what was read."""
        mean, _, back, whitened = self.calibrated
        for trial in self.trials:
            keys, values = trial.take(whitened), trial.take(self.pairs.values)
            queries = keys
            if trial.noise is not None:
                queries = keys + trial.noise * keys.norm(dim=-1, keepdim=True)
            if row.keys == "raw":  # the same disturbance, seen before whitening
                queries, keys = queries @ back + mean, trial.take(self.pairs.keys)
                queries = keys if trial.noise is None else queries
            by_draw = recall(respond(keys, values, queries), values)
            row.found[trial.column] = by_draw.mean().item()
            row.draws[trial.column] = by_draw.tolist()
        return row

    def nearest_key(self, keys_name: str) -> Row:
        """Exact search over all keys: no memory that finds values by keys can do better."""

        def respond(keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
            cosine = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-1, -2)
            return values.gather(-2, cosine.argmax(dim=-1, keepdim=True).expand_as(values))

        width = self.pairs.keys.shape[-1]
        return self.fill(Row("exact search", "", "", keys_name, width, 0), respond)

    def memory(self, kind: str, memory: Any, keys_name: str) -> Row:
        """A memory of the library; keys come to its width by a fixed orthonormal map."""
        config, width = memory.config, self.pairs.keys.shape[-1]
        to_width = orthonormal(width, memory.key_dim, self.seed)
        row = Row(kind, config.rule, config.feature_map, keys_name, memory.key_dim, state_bytes_per_head(memory))
        return self.fill(row, lambda k, v, q: ask(memory, k @ to_width, v, q @ to_width))

    @torch.no_grad()
    def whitened_features(self) -> Row:
        """Calibrate before and after DPFP: the features are the keys of an l2 memory. Not a knob of the library."""
        heads, _, width = self.pairs.keys.shape
        mapped = memory_config("tensor", "delta", "dpfp")
        mean, whitening, _, _ = self.calibrated
        features_mean, features_whitening = moments(
            apply_feature_map((self.calibration.keys - mean) @ whitening, mapped)
        )
        features = features_mean.shape[-1]
        memory = build(memory_config("tensor", "delta", "l2"), heads, features, self.pairs.values.shape[-1])

        def phi(keys: Tensor) -> Tensor:
            return (apply_feature_map(keys, mapped) - features_mean) @ features_whitening

        row = Row("tensor", "delta", FEATURES_AFTER, "calibrated", width, state_bytes_per_head(memory))
        return self.fill(row, lambda k, v, q: ask(memory, phi(k), v, phi(q)))

    def rows(self) -> Iterator[Row]:
        """Measure every row of the table."""
        heads, _, width = self.pairs.keys.shape
        value_dim = self.pairs.values.shape[-1]
        yield self.nearest_key("raw")
        yield self.nearest_key("calibrated")
        yield self.memory(
            "tensor", build(memory_config("tensor", "linear", "elu_plus_one"), heads, width, value_dim), "raw"
        )
        yield self.whitened_features()
        known = {kind for kind, _ in KINDS.values()}
        for kind in [*KINDS, *(name for name in MEMORIES if name not in known)]:
            if KINDS.get(kind, (kind, {}))[0] not in MEMORIES:
                print(f"{kind}: not in senri.memory.MEMORIES, skipped")
                continue
            for keys_name in ("raw", "calibrated") if kind == "tensor" else ("calibrated",):
                for rule in RULES:
                    for feature_map in NORMALISERS:
                        try:
                            config = memory_config(kind, rule, feature_map)
                            memory = largest_that_fits(config, heads, value_dim, self.budget)
                            yield self.memory(kind, memory, keys_name)
                        except SenriError as error:
                            print(f"{kind}, {rule}, {feature_map}: skipped ({error})")


@torch.no_grad()
def heads_rows(bench: Bench) -> Iterator[Row]:
    """Compare narrow heads with one wide head, linear rule, keys and values from the layer's whole input.

    Keys and values are two fixed random rotations of the attention's input, as projections at random starts are, cut
    into heads; a value counts as a whole, its heads joined ("alone": every head for itself). One head of
    sqrt(hidden * head_dim) has the bytes of all narrow heads together.
    """
    hidden, head_dim = bench.pairs.hidden.shape[-1], bench.pairs.keys.shape[-1]
    equal_bytes = round((hidden * head_dim) ** 0.5)
    shapes = ((hidden // head_dim, head_dim), (1, equal_bytes), (1, hidden))
    generator = torch.Generator().manual_seed(bench.seed)
    for_keys, for_values = (torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))[0] for _ in range(2))
    mean, whitening = moments(bench.calibration.hidden)
    raw, whitened = bench.pairs.hidden, (bench.pairs.hidden - mean) @ whitening
    inputs = {"raw": (raw, raw), "calibrated": (whitened, raw), "and values": (whitened, whitened)}
    for feature_map in HEADS_MAPS:
        for name, (from_keys, from_values) in inputs.items():
            keys, values = from_keys @ for_keys, from_values @ for_values
            for heads, width in shapes:
                memory = build(memory_config("tensor", "linear", feature_map), heads, width, width)
                total = state_bytes_per_head(memory) * heads
                yield from _heads_row(
                    bench, memory, keys, values, Row(f"{heads} x {width}", "linear", feature_map, name, width, total)
                )


def _heads_row(bench: Bench, memory: Any, keys: Vectors, values: Vectors, row: Row) -> Iterator[Row]:
    """Fill the row of joined heads and, where there are several, one of every head alone."""
    heads, width = memory.num_heads, memory.value_dim
    alone = Row(row.memory, row.rule, row.feature_map, "  alone", row.key_dim, row.state)
    for trial in bench.trials:
        if trial.noise is not None:
            continue
        k, v = (
            trial.take(x[..., : heads * width]).unflatten(-1, (heads, width)).squeeze(1).transpose(1, 2)
            for x in (keys, values)
        )
        read = ask(memory, k, v, k)
        joined = (x.transpose(1, 2).flatten(2).unsqueeze(1) for x in (read, v))
        for one, found in ((row, recall(*joined)), (alone, recall(read, v))):
            one.found[trial.column], one.draws[trial.column] = found.mean().item(), found.tolist()
    yield row
    if heads > 1:
        yield alone


def twins(bench: Bench) -> dict[str, dict[str, float]]:
    """Say how ambiguous the pairs themselves are: shares of pairs that have a look-alike among the others."""
    shares = {}
    for trial in bench.trials:
        if trial.noise is not None:
            continue
        others = ~torch.eye(trial.index.shape[1], dtype=torch.bool)
        ids = bench.pairs.ids[trial.index]
        keys, values = (F.normalize(trial.take(x), dim=-1) for x in (bench.pairs.keys, bench.pairs.values))
        alike = {
            "same token": (ids.unsqueeze(1) == ids.unsqueeze(2)) & others,
            "key twin": (keys @ keys.transpose(-1, -2) > TWIN) & others,
            "value close": (values @ values.transpose(-1, -2) > CLOSE) & others,
        }
        shares[trial.column] = {name: found.any(dim=-1).float().mean().item() for name, found in alike.items()}
    return shares
