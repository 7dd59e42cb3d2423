"""One live state of a whole model: every layer's memory, the window, the position. Read, fork, save, load, go on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from senri.errors import SenriError
from senri.memory.branch import MemoryBranch
from senri.memory.cleaning import SVDCleaningStats
from senri.memory.file import read_file, write_file
from senri.memory.registry import memory_rule
from senri.memory.state import Header, MemoryState, SourceProgress, fingerprint, split_tensors
from senri.mixers.cache_senri import SenriMemoryLayer, fork_cache


class Session:
    """A sequence that goes on: what the model has read so far, in a fixed number of bytes.

    Args:
        model: a `SenriForCausalLM`.
        batch_size: rows that are read side by side.
    """

    def __init__(self, model: Any, batch_size: int = 1) -> None:
        self.model = model
        self.batch_size = batch_size
        self.reset()

    def reset(self) -> None:
        """Forget everything and begin anew."""
        self.cache: Any = self.model.model.adopt(DynamicCache(config=self.model.config))
        self.source: SourceProgress | None = None
        memories = {index: layer._branch().config for index, layer in self.memory_layers.items()}
        every = {index: memory.clean_every * memory.segment_length for index, memory in memories.items()}
        self._clean_every = {index: tokens for index, tokens in every.items() if tokens}

    @property
    def tokens_read(self) -> int:
        """Tokens read so far."""
        return int(self.cache.get_seq_length())

    @property
    def memory_layers(self) -> dict[int, SenriMemoryLayer]:
        """The cache layers with a memory, by layer index."""
        return {i: layer for i, layer in enumerate(self.cache.layers) if isinstance(layer, SenriMemoryLayer)}

    def read(self, input_ids: Tensor) -> Tensor:
        """Read `[batch, seq]` and return the logits after the last token, `[batch, vocab]`."""
        return self.logits(input_ids, logits_to_keep=1)[:, -1]

    @torch.no_grad()
    def logits(self, input_ids: Tensor, logits_to_keep: int = 0) -> Tensor:
        """Read `[batch, seq]` and return logits `[batch, kept, vocab]` (all positions by default).

        With `memory.clean_every` set, the memory is cleaned at every so many segments, wherever calls begin and end.
        """
        if input_ids.ndim != 2 or input_ids.shape[0] != self.batch_size or input_ids.shape[1] == 0:
            raise SenriError(
                f"a session of {self.batch_size} row(s) reads token ids [{self.batch_size}, 1 or more], "
                f"not {list(input_ids.shape)}."
            )
        input_ids = input_ids.to(self.model.device)
        pieces = []
        while input_ids.shape[1]:
            to_cleaning = [every - self.tokens_read % every for every in self._clean_every.values()]
            room = min([input_ids.shape[1], *to_cleaning])
            piece, input_ids = input_ids[:, :room], input_ids[:, room:]
            out = self.model(piece, past_key_values=self.cache, use_cache=True, logits_to_keep=logits_to_keep)
            pieces.append(out.logits)
            self._clean_those_due()
        logits = torch.cat(pieces, dim=1)
        return logits[:, -logits_to_keep:] if logits_to_keep else logits

    def generate(self, input_ids: Tensor, generation_config: GenerationConfig | None = None, **kwargs: Any) -> Tensor:
        """Read a prompt `[1, seq]`, generate after it and return the new ids `[1, new]`; the session keeps both.

        Args:
            input_ids: the prompt, at least one token.
            generation_config: as for transformers' `generate`.
            **kwargs: as for transformers' `generate` (`max_new_tokens`, `do_sample`, `num_beams`, ...).

        Raises:
            SenriError: more than one row, or `use_cache=False`.
        """
        result = self.generate_whole(input_ids, generation_config, **{**kwargs, "return_dict_in_generate": False})
        new: Tensor = result[:, input_ids.shape[1] :]
        return new

    def generate_whole(
        self, input_ids: Tensor, generation_config: GenerationConfig | None = None, keep: bool = True, **kwargs: Any
    ) -> Any:
        """Do as `generate`, but return what transformers' `generate` returns: prompt and new ids, or its output object.

        Without `keep` the session stays as it was.

        Raises:
            SenriError: more than one row, or `use_cache=False`.
        """

        def setting(name: str, default: Any) -> Any:
            places = (
                kwargs.get(name),
                getattr(generation_config, name, None),
                getattr(self.model.generation_config, name),
            )
            return next((value for value in places if value is not None), default)

        if self.batch_size != 1 or input_ids.shape[0] != 1 or setting("num_return_sequences", 1) != 1:
            raise SenriError(
                "a session generates for one sequence at a time: batch size 1 and num_return_sequences 1, or leave the "
                "session (the end of its `with`, else reset_memory())."
            )
        if not setting("use_cache", True):
            raise SenriError("a session's generation goes on from its cache: leave use_cache=False out.")
        input_ids = input_ids.to(self.model.device)
        # Beams and drafts rearrange the cache, so they work on a copy and the session reads the result.
        seen = torch.ones((1, self.tokens_read + input_ids.shape[1]), dtype=torch.bool, device=input_ids.device)
        cache = fork_cache(self.cache)
        cache.batch_repeat_interleave(setting("num_beams", 1))
        outer, self.model._session = self.model._session, None
        try:
            result = self.model.generate(
                input_ids, generation_config, attention_mask=seen, past_key_values=cache, **kwargs
            )
        finally:
            self.model._session = outer
        if keep:
            self.read(getattr(result, "sequences", result))
        return result

    def fork(self) -> "Session":
        """Return an independent copy: reading in one does not touch the other."""
        twin = Session(self.model, self.batch_size)
        twin.cache = fork_cache(self.cache)
        twin.source = self.source
        return twin

    def detach_(self) -> None:
        """Cut the autograd graph here, for truncated back-propagation through time; what was read stays."""
        for layer in self.cache.layers:
            if isinstance(layer, SenriMemoryLayer):
                layer.detach_()
            if getattr(layer, "keys", None) is not None:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()

    def clean(self, energy_threshold: float = 0.95, max_rank: int | None = None) -> dict[int, SVDCleaningStats]:
        """Clean every memory by SVD and return what was kept, by layer; layers without a state are left out."""
        cleaned = {index: self._clean_layer(index, energy_threshold, max_rank) for index in self.memory_layers}
        return {index: stats for index, stats in cleaned.items() if stats is not None}

    def memory_bytes(self) -> int:
        """Bytes of all memory states; the same however much was read."""
        states = [layer.memory_state or {} for layer in self.memory_layers.values()]
        return sum(tensor.nbytes for state in states for tensor in state.values())

    def window_bytes(self) -> int:
        """Bytes of all kept keys and values; bounded where every attention is a sliding window."""
        kept = [layer for layer in self.cache.layers if getattr(layer, "keys", None) is not None]
        # A window is a view of what was last attended to; its own elements are what counts and what is saved.
        return sum(part.numel() * part.element_size() for layer in kept for part in (layer.keys, layer.values))

    def header(self, kind: str) -> Header:
        """Describe this session and the model it belongs to."""
        config = self.model.config
        layers = config.memory_layers
        return Header(
            kind=kind,
            base=config.base_name_or_path,
            fingerprint=model_fingerprint(self.model),
            dtype=str(self.model.dtype).removeprefix("torch."),
            tokens_read=self.tokens_read,
            rule="+".join(sorted({memory_rule(config.memory_config_of(layer)) for layer in layers})),
            memory_type="+".join(sorted({config.memory_config_of(layer).type for layer in layers})),
            source=self.source,
        )

    def get_memory_state(self) -> MemoryState:
        """Return a copy of the memories alone."""
        layers = {
            index: {name: tensor.detach().clone() for name, tensor in layer.memory_state.items()}
            for index, layer in self.memory_layers.items()
            if layer.memory_state
        }
        return MemoryState(layers=layers, header=self.header("memory"))

    def set_memory_state(self, state: MemoryState) -> None:
        """Take over memories, one row for all rows or row by row; windows and position stay as they are.

        Raises:
            SenriError: the state belongs to another model, or to another number of rows.
        """
        self._check(state.header, "this memory state")
        if state.layers and state.batch_size not in (1, self.batch_size):
            raise SenriError(f"the memory state has {state.batch_size} rows, but this session has {self.batch_size}.")
        for index, layer in self.memory_layers.items():
            layer.set_memory(state.layers.get(index), self.batch_size, self.model.device)

    def save(self, path: str | Path) -> None:
        """Write memories, windows and position to a file. Going on after `load` equals never having stopped."""
        tensors = self.get_memory_state().to_tensors() | window_tensors(self.cache)
        write_file(Path(path), tensors, self.header("session"))

    @classmethod
    def load(cls, path: str | Path, model: Any) -> "Session":
        """Read a session file that was saved with the same model.

        Raises:
            SenriError: not a session file, damaged, newer than this Senri, or of another model.
        """
        tensors, header = read_file(Path(path))
        if header.kind != "session":
            raise SenriError(f"{path} holds a {header.kind}, not a session: use MemoryState.load and set_memory_state.")
        memories, windows = split_tensors(tensors)
        rows = [part.shape[0] for parts in (*windows.values(), *memories.values()) for part in parts.values()]
        session = cls(model, batch_size=max(rows, default=1))
        session._check(header, str(path))
        session.set_memory_state(MemoryState(layers=memories, header=header))
        restore_windows(session.cache, windows, header.tokens_read, model.device)
        session.source = header.source
        return session

    def _clean_those_due(self) -> None:
        for index, every in self._clean_every.items():
            if self.tokens_read % every == 0:
                self._clean_layer(index, self.memory_layers[index]._branch().config.clean_energy)

    def _clean_layer(self, index: int, energy_threshold: float, max_rank: int | None = None) -> SVDCleaningStats | None:
        """Clean one layer's memory, if it has one that holds a state and may change."""
        layer, branch = self.memory_layers[index], self.memory_layers[index]._branch()
        if not layer.memory_state or not isinstance(branch, MemoryBranch) or branch.memory.frozen:
            return None
        layer.memory_state, stats = branch.clean(layer.memory_state, energy_threshold, max_rank)
        return stats

    def _check(self, header: Header, what: str) -> None:
        mine, dtype = model_fingerprint(self.model), str(self.model.dtype).removeprefix("torch.")
        if header.fingerprint != mine:
            raise SenriError(
                f"{what} belongs to another model (base {header.base!r}, {header.dtype}, fingerprint "
                f"{header.fingerprint[:12]}), not to this one (base {self.model.config.base_name_or_path!r}, {dtype}, "
                f"fingerprint {mine[:12]}): open it with the model it was made with."
            )


def model_fingerprint(model: Any) -> str:
    """Return a digest of what gives a state its meaning: the layout and the weights of the layers with a memory."""
    config = model.config
    layout = {
        "base_model_type": config.base_model_type,
        "hidden_size": config.hidden_size,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rope_parameters": dict(config.rope_parameters),
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window,
        "memory": {layer: config.memory_config_of(layer).to_dict() for layer in config.memory_layers},
    }
    weights = {
        f"{index}.{name}": parameter
        for index in model.model.memory_branches()
        for name, parameter in model.model.layers[index].self_attn.named_parameters()
    }
    return fingerprint(layout, weights)


def window_tensors(cache: Any) -> dict[str, Tensor]:
    """Return copies of the keys and values that a cache holds, under the names that files have for them."""
    return {
        f"layers.{index}.window.{name}": getattr(layer, name).contiguous().clone()
        for index, layer in enumerate(cache.layers)
        if getattr(layer, "keys", None) is not None and layer.keys.numel()
        for name in ("keys", "values")
    }


def restore_windows(
    cache: Any, windows: Mapping[int, Mapping[str, Tensor]], tokens_read: int, device: torch.device
) -> None:
    """Give a fresh cache keys and values, by layer index (`keys`, `values`), as if it had read so many tokens."""
    for index, window in windows.items():
        layer, keys, values = cache.layers[index], window["keys"].to(device), window["values"].to(device)
        assert isinstance(layer, DynamicLayer)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = tokens_read
