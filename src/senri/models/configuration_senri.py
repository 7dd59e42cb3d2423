"""SenriConfig: Hugging Face's own flat names for the base, plus which layers carry a memory and what that memory is."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from senri.errors import SenriError, nearest
from senri.memory import MemoryConfig, resolve_config
from senri.mixers.cache_senri import MEMORY_LAYER_TYPES
from senri.models.memory_layers import by_layer, check_memory, check_stable, layer_config

FAMILIES = {"llama": "llama", "qwen2": "llama", "gpt_neox": "gpt_neox"}
"""Family (how a block is put together) of each supported base architecture."""


class SenriConfig(PreTrainedConfig):
    """Configuration of a Senri model.

    The base's fields keep the names of `LlamaConfig`, `Qwen2Config` and `GPTNeoXConfig`. Senri's own:

    Args:
        base_model_type: architecture of the base: `llama`, `qwen2` or `gpt_neox`.
        base_name_or_path: where the base came from; part of a session file's header.
        memory_layers: indices of the layers with a memory. May be given as `num_memory_layers`, `first_memory_layer`
            and `memory_layer_interval` instead.
        sliding_window: tokens a sliding layer sees, its own included; None for full attention everywhere.
        attention_sink: sliding layers keep a stand-in for the first token once it has left the window.
        default_layer_type: attention of the layers without a memory: `full_attention` or `sliding_attention`.
        layer_types: derived from the above; transformers' caches are built from it.
        memory: the fields of `senri.memory.MemoryConfig`, for all layers with a memory. `top_k_memories` may be given
            beside it as the option `top_k` of an orthogonal-basis memory.
        layer_memories: by layer index, fields of `memory` that differ in that layer; layers of different kinds mix.
        qkv_bias, o_bias: biases of the attention projections.

    Raises:
        SenriError: a value that cannot be; the sentence names it.
    """

    model_type = "senri"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    base_model_type: str = "llama"
    base_name_or_path: str = ""
    vocab_size: int = 49152
    hidden_size: int = 576
    intermediate_size: int = 1536
    num_hidden_layers: int = 30
    num_attention_heads: int = 9
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict | None = None  # type: ignore[type-arg]  # transformers' own annotation
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: int | float = 0.0
    hidden_dropout: int | float = 0.0
    use_parallel_residual: bool = True
    sliding_window: int | None = None
    default_layer_type: str = "full_attention"
    attention_sink: bool = False
    memory_layers: list[int] | None = None
    layer_types: list[str] | None = None
    memory: dict | None = None  # type: ignore[type-arg]  # transformers reads the annotation at run time
    layer_memories: dict | None = None  # type: ignore[type-arg]

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        count = kwargs.pop("num_memory_layers", None)
        first = kwargs.pop("first_memory_layer", 0)
        interval = kwargs.pop("memory_layer_interval", 1)
        if self.memory_layers is None and self.layer_types is not None:
            self.memory_layers = self._typed_memory_layers()
        elif self.memory_layers is None:
            self.memory_layers = [first + i * interval for i in range(count or 0)]
        given = dict(self.memory or {})
        if (top_k := kwargs.pop("top_k_memories", None)) is not None:
            given["options"] = {**given.get("options", {}), "top_k": top_k}
        self.memory = resolve_config(given).to_dict()
        self.layer_memories = by_layer(self.layer_memories)
        self._check_sizes()
        check_stable(self.memory_config)
        for layer in self.memory_layers or []:
            check_memory(self, layer)
        if self.layer_types is None:
            self.layer_types = self._derive_layer_types()
        self.check_layer_types()
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def family(self) -> str:
        """`llama` or `gpt_neox`."""
        return FAMILIES[self.base_model_type]

    @property
    def end_token(self) -> int | None:
        """The token that ends a text or an answer, of several the first; None where there is none."""
        return self.eos_token_id[0] if isinstance(self.eos_token_id, list) else self.eos_token_id

    @property
    def memory_config(self) -> MemoryConfig:
        """The typed `memory` section, common to all layers that say nothing else."""
        return MemoryConfig.from_dict(dict(self.memory or {}))

    def memory_config_of(self, layer: int) -> MemoryConfig:
        """The knobs of one layer's memory."""
        own = (self.layer_memories or {}).get(str(layer))
        return self.memory_config if own is None else layer_config(dict(self.memory or {}), own)

    def memory_sizes(self, layer: int | None = None) -> dict[str, int]:
        """Sizes of a layer's memory: the configured ones, else the base's (num_heads, ..., value_dim)."""
        memory, head_dim = self.memory_config if layer is None else self.memory_config_of(layer), self.head_dim
        num_heads = memory.num_heads or self.num_attention_heads
        kv_heads = memory.num_key_value_heads or (memory.num_heads or self.num_key_value_heads)
        assert head_dim is not None and kv_heads is not None
        return {
            "hidden_size": self.hidden_size * (1 + memory.token_inputs),
            "num_heads": num_heads,
            "num_key_value_heads": kv_heads,
            "key_dim": memory.key_dim or head_dim,
            "value_dim": memory.value_dim or head_dim,
        }

    def writing_layer(self, layer: int) -> int:
        """Return the layer whose state a memory layer reads: itself, or the first of those that share one."""
        if self.memory_config_of(layer).state == "layer":
            return layer
        sharing = [one for one in sorted(self.memory_layers or []) if self.memory_config_of(one).state == "shared"]
        return sharing[0]

    def check_layer_types(self) -> None:
        """Check that the layers' types say what `memory_layers` says; fields set one by one may part them.

        Raises:
            SenriError: they do not, or there are not as many types as layers.
        """
        types, named = self.layer_types or [], sorted(self.memory_layers or [])
        if len(types) != self.num_hidden_layers or self._typed_memory_layers() != named:
            raise SenriError(
                f"layer_types {types} does not fit num_hidden_layers {self.num_hidden_layers} and memory_layers "
                f"{named}: build the configuration anew without layer_types."
            )

    def _derive_layer_types(self) -> list[str]:
        beside = "hybrid" if self.sliding_window is None else "hybrid_sliding"
        layers = self.memory_layers or []

        def kind(layer: int) -> str:
            if layer not in layers:
                return self.default_layer_type
            return "linear_attention" if self.memory_config_of(layer).combine == "alone" else beside

        return [kind(layer) for layer in range(self.num_hidden_layers)]

    def _typed_memory_layers(self) -> list[int]:
        return [i for i, kind in enumerate(self.layer_types or []) if kind in MEMORY_LAYER_TYPES]

    def _check_sizes(self) -> None:
        if self.base_model_type not in FAMILIES:
            raise SenriError(f"base_model_type is {self.base_model_type!r}: {nearest(self.base_model_type, FAMILIES)}")
        if self.default_layer_type not in ("full_attention", "sliding_attention"):
            kinds = ("full_attention", "sliding_attention")
            raise SenriError(
                f"default_layer_type is {self.default_layer_type!r}: {nearest(self.default_layer_type, kinds)}"
            )
        positive = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in positive:
            if getattr(self, name) < 1:
                raise SenriError(f"{name} is {getattr(self, name)}, but it must be at least 1.")
        if self.sliding_window is not None and self.sliding_window < 2:  # transformers' caches never drop a window of 1
            raise SenriError(f"sliding_window is {self.sliding_window}, but it must be at least 2 (or null for none).")
        if self.sliding_window is None and self.default_layer_type == "sliding_attention":
            raise SenriError("default_layer_type is 'sliding_attention', but sliding_window is not set: give its size.")
        if self.sliding_window is None and self.attention_sink:
            raise SenriError("attention_sink is on, but sliding_window is not set: a sink stands in for what it loses.")
        layers = self.memory_layers or []
        if len(set(layers)) != len(layers):
            raise SenriError(f"memory_layers {layers} names a layer twice.")
        for layer in layers:
            if not 0 <= layer < self.num_hidden_layers:
                raise SenriError(
                    f"memory_layers has {layer}, but the base's layers are 0 to {self.num_hidden_layers - 1}."
                )
        for layer in self.layer_memories or {}:
            if not layer.isdigit() or int(layer) not in layers:
                raise SenriError(f"layer_memories names layer {layer}, but memory_layers are {layers}.")
        alone = [layer for layer in layers if self.memory_config_of(layer).combine == "alone"]
        if len(alone) == self.num_hidden_layers:
            raise SenriError(
                "memory_layers names every layer, but with memory.combine 'alone' one must keep attention."
            )
