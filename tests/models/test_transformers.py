"""What users of transformers expect of any model: Auto classes, saving, training, PEFT, checkpointing, backends."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from senri.errors import SenriError
from senri.models import SenriConfig, SenriForCausalLM

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@torch.no_grad()
def test_auto_class_loads_what_was_saved(model: SenriForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is SenriForCausalLM
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, loaded.state_dict()[name]), name
    # Weights in a file lie at other addresses, by which processors add up in another order.
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, **TOLERANCE)


def test_parameters_missing_from_a_checkpoint_start_as_built(model: SenriForCausalLM, tmp_path: Path) -> None:
    own = ("memory",)
    weights = {name: value for name, value in model.state_dict().items() if not any(word in name for word in own)}
    model.save_pretrained(tmp_path, state_dict=dict(weights))
    loaded = SenriForCausalLM.from_pretrained(tmp_path)
    fresh = SenriForCausalLM(model.config)
    for name, parameter in loaded.named_parameters():
        if name in weights:
            assert torch.equal(parameter, weights[name])
        elif not name.endswith(
            ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "router")
        ):
            # linear maps start at random, everything else at a set value
            assert torch.equal(parameter, fresh.get_parameter(name)), name


@torch.no_grad()
def test_eager_equals_sdpa(model: SenriForCausalLM, ids: Tensor) -> None:
    sdpa = model(ids).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids).logits, sdpa, **TOLERANCE)


def test_gradient_checkpointing_changes_no_gradient(model: SenriForCausalLM, ids: Tensor) -> None:
    model.train()

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.activation_checkpointing_enable()
    for expected, got in zip(plain, gradients(), strict=True):
        assert (expected is None) == (got is None)
        if expected is not None:
            torch.testing.assert_close(got, expected, **TOLERANCE)


def test_every_parameter_learns(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    memory_model.train()
    memory_model(ids, labels=ids, use_cache=False).loss.backward()
    learning = [(name, p) for name, p in memory_model.named_parameters() if p.requires_grad]
    still = [name for name, p in learning if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trainer_sees_the_models_own_loss(
    build: Callable[..., SenriForCausalLM], ids: Tensor, tmp_path: Path, smoothing: float
) -> None:
    model = build("gate")
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        label_smoothing_factor=smoothing,
        report_to="none",
        use_cpu=True,
        learning_rate=0.0,
        logging_steps=1,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), label_smoothing=smoothing)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-3)


def test_lora_on_the_projections(build: Callable[..., SenriForCausalLM], ids: Tensor, tmp_path: Path) -> None:
    lora = LoraConfig(
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        modules_to_save=["memory_gate"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(build("gate"), lora)
    adapted(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, expected, **TOLERANCE)


@torch.no_grad()
def test_bf16_is_close_to_float32(model: SenriForCausalLM, ids: Tensor) -> None:
    expected = model(ids).logits
    got = model.bfloat16()(ids).logits
    assert got.dtype == torch.bfloat16
    correlation = torch.corrcoef(torch.stack([expected.flatten(), got.float().flatten()]))[0, 1]
    assert correlation > 0.98


@torch.no_grad()
def test_a_long_forward_never_builds_a_mask_over_all_pairs(build: Callable[..., SenriForCausalLM]) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    length = 2048
    ids = torch.randint(0, 101, (1, length))
    with Largest() as seen:
        build("gate")(ids, use_cache=False)
    assert seen.elements < length * length / 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"memory_layers": [3]}, "memory_layers has 3, but the base's layers are 0 to 2"),
        ({"memory_layers": [-1]}, "memory_layers has -1"),
        ({"memory_layers": [1, 1]}, "names a layer twice"),
        ({"sliding_window": 1}, "sliding_window is 1"),
        ({"memory_layers": [1], "layer_types": ["full_attention"] * 3}, "does not fit"),
        ({"layer_types": ["full_attention"] * 2}, "does not fit"),
        ({"hidden_size": -4}, "hidden_size is -4"),
        ({"base_model_type": "lama"}, "did you mean 'llama'"),
        ({"default_layer_type": "sliding_attention"}, "sliding_window is not set"),
        ({"memory": {"rule": "delte"}}, "did you mean 'delta'"),
        ({"memory": {"ruel": "delta"}}, "unknown key 'memory.ruel'"),
        ({"memory": {"segment_length": "4"}}, "must be int"),
        ({"memory": {"rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm"}}, "unstable"),
        ({"memory_layers": [0, 1, 2], "memory": {"combine": "alone"}}, "one must keep attention"),
    ],
)
def test_bad_values_are_named(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(SenriError, match=sentence):
        SenriConfig(**{"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, **options})


def test_layers_may_be_given_by_count_first_and_interval() -> None:
    config = SenriConfig(num_memory_layers=2, first_memory_layer=10, memory_layer_interval=10)
    assert config.memory_layers == [10, 20]
    assert [i for i, kind in enumerate(config.layer_types) if kind == "hybrid"] == [10, 20]


def test_layer_types_alone_name_the_memory_layers() -> None:
    assert SenriConfig(num_hidden_layers=2, layer_types=["full_attention", "hybrid"]).memory_layers == [1]


def test_memory_layers_changed_while_loading_are_refused(
    build: Callable[..., SenriForCausalLM], tmp_path: Path
) -> None:
    build("gate").save_pretrained(tmp_path)
    with pytest.raises(SenriError, match="does not fit"):
        SenriForCausalLM.from_pretrained(tmp_path, memory_layers=[2])


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["gate", "add", "copy", "sink"])
def test_compiled_with_padding_or_packing(build: Callable[..., SenriForCausalLM], ids: Tensor, mixer: str) -> None:
    model, mask = build(mixer), torch.ones_like(ids)
    mask[0, :9] = 0
    torch.compiler.reset()
    whole = torch.compile(model.forward, backend="eager", fullgraph=True)
    got = whole(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(got[0, 9:], model(ids[:1, 9:]).logits[0], **TOLERANCE)
    packed = torch.compile(model.forward, backend="eager")
    positions = torch.cat([torch.arange(11), torch.arange(18)])[None]
    got = packed(ids[:1], position_ids=positions, use_cache=False).logits
    apart = torch.cat([model(ids[:1, :11]).logits, model(ids[:1, 11:]).logits], dim=1)
    torch.testing.assert_close(got, apart, **TOLERANCE)


@torch.no_grad()
def test_one_missing_parameter_leaves_its_loaded_neighbours(
    build: Callable[..., SenriForCausalLM], tmp_path: Path
) -> None:
    model, missing = build("add"), "model.layers.1.self_attn.memory.inputs.beta_proj.bias"
    start = model.get_parameter(missing).clone()
    for parameter in model.parameters():
        parameter.normal_()
    weights = {name: value for name, value in model.state_dict().items() if name != missing}
    model.save_pretrained(tmp_path, state_dict=dict(weights))
    loaded = SenriForCausalLM.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, start if name == missing else weights[name]), name
