"""A tiny converted model with a byte-level tokenizer, in a folder, as commands find it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from senri.cli import main
from senri.models import SenriConfig, SenriForCausalLM

TEXT = "".join(f"The {index}th line says that the sum of {index} and {index} is {2 * index}.\n" for index in range(120))
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def senri_folder(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int, **changes: object) -> Path:
    torch.manual_seed(seed)
    config = SenriConfig(
        vocab_size=len(tokenizer),
        sliding_window=16,
        default_layer_type="sliding_attention",
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{"memory_layers": [1], "memory": {"segment_length": 8, "gate_init": 0.0}, **SIZES, **changes},
    )
    SenriForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return senri_folder(tmp_path_factory.mktemp("models") / "model", tokenizer, seed=1)


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return senri_folder(tmp_path_factory.mktemp("models") / "other", tokenizer, seed=2)


@pytest.fixture
def make_model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Make the folder of a model with other settings."""
    return lambda **changes: senri_folder(tmp_path / "made", tokenizer, seed=3, **changes)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def session(tmp_path: Path) -> Path:
    return tmp_path / "book.senri"


@pytest.fixture(scope="session")
def read_session_file(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("read")
    (folder / "book.txt").write_text(TEXT)
    path = folder / "book.senri"
    words = ["read", "--model", str(model_folder), "--text", str(folder / "book.txt"), "--session", str(path)]
    assert main([*words, "--tokens", "200", "chunk_size=50"]) == 0
    return path


@pytest.fixture
def read_session(read_session_file: Path, session: Path) -> Path:
    """A session that has read 200 tokens of the text."""
    shutil.copy(read_session_file, session)
    return session


Senri = Callable[..., int]


@pytest.fixture
def senri() -> Senri:
    """Run one command line in this process and return its exit code."""
    return lambda *words: main([str(word) for word in words])


@pytest.fixture
def complaint(senri: Senri, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail, and return the one line it says."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert senri(*words) == 2
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("senri: ")]
        assert len(lines) == 1
        assert said.rstrip().endswith(lines[0])
        assert lines[0].startswith("senri: error: ")
        return lines[0]

    return run
