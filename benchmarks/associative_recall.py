"""Associative recall of untrained memories at equal state bytes: how many stored pairs are found again by their keys.

    python benchmarks/associative_recall.py [--text book.txt] [--calibration-text other.txt] [--layer 20] [--out DIR]

A base reads a text; at one layer the keys (before rotary positions) and values of N tokens are written into a memory
in one run, then every key is the query once. A pair counts as found when, of all N stored values, its own is nearest
to what was read (cosine). Pairs are N random tokens of a stretch of the text, in text order; the columns "run" take N
tokens in a row instead, and "noisy" disturbs every query. Calibration (mean and whitening of the keys per head) is
measured on another stretch, or on another text.

Every memory gets the same bytes per key/value head (M and z, float32): those of DPFP-3 on the base's keys. Its key
width is the largest that fits; the base's keys are mapped to that width by a fixed random orthonormal matrix. A second
table compares many narrow heads with one wide head. Ends with status 1 where the targets are missed.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from torch import Tensor

from senri.conversion import load_base, resolve_base
from senri.data import TokenStream, chunks, open_document
from senri.errors import SenriError
from senri.evaluation.figures import png_bytes
from senri.evaluation.files import make_folder, write_bytes
from senri.evaluation.report import write_json
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
RUN_PAIRS_SHOWN = (64, 128)
SEGMENT = 16  # tokens until the next of several memories has its turn: all four take part from 64 pairs on
TOKENS_PER_COLUMN, FEWEST_DRAWS = 2048, 2  # large numbers of pairs need fewer draws for the same certainty
NOISY_PAIRS = 128
NOISE = 0.5
"""Length of a noisy query's disturbance as a share of the whitened key's length: their cosine is about 0.89."""
TWIN = 0.9999  # keys with a larger cosine cannot be told apart by any memory
CLOSE = 0.95  # values with a larger cosine are easily confused
FEATURES_AFTER = "dpfp, whitened"
HEADS_MAPS = ("elu_plus_one", "l2")
# Okabe and Ito's palette, which colour-blind readers can tell apart; markers and line styles differ as well.
STYLES = (
    ("#000000", ":", ""),
    ("#555555", "--", "x"),
    ("#0072B2", "-", "s"),
    ("#009E73", "-", "^"),
    ("#D55E00", "-", "o"),
    ("#CC79A7", "-.", "D"),
    ("#E69F00", "-.", "P"),
    ("#56B4E9", "-.", "v"),
    ("#000000", "-.", "*"),
)

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


def check(rows: Sequence[Row]) -> bool:
    """Print how the rows stand to the targets and return whether all are met."""
    by_name = {row.name: row for row in rows}
    best, met = by_name[BEST], True
    for pairs, target in TARGETS.items():
        reached = best.found[f"{pairs}"]
        met &= reached >= target
        print(f"{' '.join(BEST)} at {pairs} pairs: {reached:.1%} (target {target:.0%})")
    baseline = next(row for row in rows if row.memory == "tensor")
    column = f"{BASELINE_PAIRS}"
    kinds = dict.fromkeys(row.memory for row in rows if row.state)
    for kind in kinds:
        mine = [row for row in rows if row.memory == kind and row.keys == "calibrated"]
        better = [row for row in mine if row.found[column] > baseline.found[column]]
        met &= bool(better)
        print(
            f"{kind}: {len(better)} of {len(mine)} calibrated rows beat raw ELU+1, linear, {baseline.key_dim} wide "
            f"({baseline.found[column]:.1%}) at {BASELINE_PAIRS} pairs; best "
            f"{max(row.found[column] for row in mine):.1%}"
        )
    return met


def columns() -> list[str]:
    return [f"{n}" for n in PAIRS] + [f"run {n}" for n in RUN_PAIRS_SHOWN] + [f"noisy {NOISY_PAIRS}"]


def line(cells: Sequence[str], found: Sequence[str]) -> str:
    widths = (15, 7, 15, 11, 8, 11)
    left = "".join(f"{cell:<{width}}" for cell, width in zip(cells[:4], widths, strict=False))
    sizes = "".join(f"{cell:>{width}}" for cell, width in zip(cells[4:], widths[4:], strict=False))
    return (
        left + sizes + "".join(f"{cell:>{max(7, len(name) + 1)}}" for cell, name in zip(found, columns(), strict=False))
    )


def show(row: Row, names: Sequence[str]) -> str:
    cells = (*row.name, f"{row.key_dim}" if row.key_dim else "", f"{row.state:,}" if row.state else "")
    return line(cells, [f"{100 * row.found[name]:.1f}" if name in row.found else "" for name in names])


def chart(rows: Sequence[Row], title: str) -> Figure:
    """Draw recall against the number of pairs: random tokens left, tokens in a row right."""
    chosen = lines_of_chart(rows)
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (prefix, heading) in zip(panels, (("", "random tokens"), ("run ", "tokens in a row")), strict=True):
        for (label, row), (colour, dash, marker) in zip(chosen, cycle(STYLES), strict=False):
            shown = [n for n in PAIRS if f"{prefix}{n}" in row.found]
            found = [100 * row.found[f"{prefix}{n}"] for n in shown]
            panel.plot(shown, found, dash, marker=marker, color=colour, linewidth=1.8, markersize=6, label=label)
        panel.plot(
            TARGETS.keys(), [100 * x for x in TARGETS.values()], "+", color="black", markersize=12, label="target"
        )
        panel.set(xscale="log", xlabel="stored pairs", ylim=(-2, 103))
        panel.set_xticks(shown)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_title(heading, loc="left")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("pairs found again, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def lines_of_chart(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Choose the lines: ceiling, baseline, the steps of calibration, then each memory type's best row."""
    by_name = {row.name: row for row in rows}
    baseline = next(row for row in rows if row.memory == "tensor")
    chosen = [
        ("exact search, calibrated keys", by_name["exact search", "", "", "calibrated"]),
        (f"raw keys, ELU+1, linear, {baseline.state:,} bytes", baseline),
        ("calibrated, l2, delta", by_name["tensor", "delta", "l2", "calibrated"]),
        ("calibrated, DPFP-3, delta", by_name[BEST]),
        ("the same, features whitened too", by_name["tensor", "delta", FEATURES_AFTER, "calibrated"]),
    ]
    for kind in dict.fromkeys(row.memory for row in rows if row.memory not in ("exact search", "tensor")):
        best = max((row for row in rows if row.memory == kind), key=lambda row: row.found[f"{NOISY_PAIRS}"])
        chosen.append((f"{kind}: calibrated, {best.feature_map}, {best.rule}", best))
    return chosen


def read_tokens(source: str | None, tokenizer: Any, skip: int, tokens: int, piece: int) -> tuple[str, list[Tensor]]:
    document = open_document(source)
    ids = islice(TokenStream(document, tokenizer, 65536), skip, skip + tokens)
    pieces = list(chunks(ids, piece))
    if sum(one.shape[1] for one in pieces) < tokens:
        raise SenriError(f"{document.name} has no {tokens:,} tokens after the first {skip:,}: give a longer text.")
    return document.name, pieces


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--layer", type=int, default=20, help="20 and 10 are memory layers of the smollm presets")
    parser.add_argument("--text", default=None, help="of the pairs; the Python language reference if left out")
    parser.add_argument("--skip", type=int, default=16384, help="tokens left out at the start of --text")
    parser.add_argument("--tokens", type=int, default=8192, help="of the stretch that pairs are drawn from")
    parser.add_argument("--calibration-text", default=None, help="left out: the beginning of --text")
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=2048, help="tokens that the base reads at a time")
    parser.add_argument("--draws", type=int, default=16, help="draws of pairs in each column at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder for a JSON file and a chart")
    options = parser.parse_args()
    calibration_source = options.calibration_text or options.text
    same_text = calibration_source == options.text
    if same_text and options.calibration_tokens > options.skip:
        parser.error("the calibration stretch reaches into the pairs: raise --skip or name a --calibration-text")
    if options.tokens < max(PAIRS):
        parser.error(f"--tokens must be at least {max(PAIRS)}")

    model, tokenizer = load_base(resolve_base(options.base))
    decoder: Any = model.eval().model
    decoder.layers = decoder.layers[: options.layer + 1]  # what lies above is not needed
    calibration_name, calibration = read_tokens(
        calibration_source, tokenizer, 0, options.calibration_tokens, options.context
    )
    text_name, pieces = read_tokens(options.text, tokenizer, options.skip, options.tokens, options.context)
    pairs = record(decoder, pieces, options.layer)
    heads, _, width = pairs.keys.shape
    budget = state_bytes_per_head(build(memory_config("tensor", "delta", "dpfp"), heads, width, pairs.values.shape[-1]))
    trials = make_trials(options.tokens, options, heads, width)
    bench = Bench(pairs, record(decoder, calibration, options.layer), trials, budget, options.seed)

    # The many small triangular solves of the delta rule wait for each other where threads outnumber idle cores.
    torch.set_num_threads(1)
    print(f"base         {options.base}, layer {options.layer}, {heads} key/value heads, keys and values {width} wide")
    print(f"pairs        {text_name}, tokens {options.skip:,} to {options.skip + options.tokens:,}")
    print(f"calibration  {calibration_name}, the first {options.calibration_tokens:,} tokens")
    print(f"budget       {budget:,} bytes per key/value head: M and z, float32")
    print(f"found again  % of pairs, mean over heads and {FEWEST_DRAWS} to {options.draws} draws\n")
    print(line(("memory", "rule", "feature map", "keys", "key_dim", "bytes/head"), columns()))
    rows = []
    for row in bench.rows():
        rows.append(row)
        print(show(row, columns()), flush=True)
    alike = twins(bench)
    print("\npairs that have among the others")
    for name in ("same token", "key twin", "value close"):
        print(show(Row(name, "", "", "", 0, 0, {column: shares[name] for column, shares in alike.items()}), columns()))
    print("\nheads: keys and values are rotations of the layer's input; bytes of all heads together")
    by_heads = []
    for row in heads_rows(bench):
        by_heads.append(row)
        print(show(row, columns()), flush=True)
    print()
    met = check(rows)

    if options.out is not None:
        make_folder(options.out)
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        values = {
            "settings": settings | {"text_name": text_name, "calibration_name": calibration_name, "budget": budget},
            "rows": [dataclasses.asdict(row) for row in rows],
            "heads": [dataclasses.asdict(row) for row in by_heads],
            "twins": alike,
        }
        write_json(options.out / "associative_recall.json", values)
        title = f"{options.base}, layer {options.layer}, {text_name}; {budget:,} bytes per head unless said"
        write_bytes(options.out / "associative_recall.png", png_bytes(chart(rows, title)))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
