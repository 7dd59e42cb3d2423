"""Questions to a session: the chat template where there is one, and how an answer is generated."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from senri.errors import SenriError

if TYPE_CHECKING:
    from torch import Tensor

# The values at which transformers does not warn that greedy search ignores them.
_NO_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}


@dataclass
class GenerateSettings:
    """What `config/generate.yaml` holds; the file says what each is.

    Raises:
        SenriError: a value out of range.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    clean_when_idle: bool

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SenriError(f"max_new_tokens is {self.max_new_tokens}, but it must be at least 1.")
        if self.temperature < 0:
            raise SenriError(f"temperature is {self.temperature}, but it must be 0 (the likeliest token) or above.")
        if not 0 < self.top_p <= 1:
            raise SenriError(f"top_p is {self.top_p}, but it must be above 0 and at most 1.")

    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments of `generate`; they replace what the base's own generation config says."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False, **_NO_SAMPLING}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }


class Conversation:
    """Turns of a chat as token ids that follow what the session has read.

    Args:
        tokenizer: of transformers; without a chat template a turn is the bare line.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.messages: list[dict[str, str]] = []
        self._read = ""

    def ask(self, question: str) -> "Tensor":
        """Return the ids `[1, seq]` that the session must read next for this question.

        Raises:
            SenriError: the question is empty.
        """
        if not question.strip():
            raise SenriError("the question is empty: write one in quotation marks.")
        self.messages.append({"role": "user", "content": question})
        text = f"{question}\n"
        if self.tokenizer.chat_template:
            whole = self._rendered(self.messages)
            # A template that rewrites earlier turns cannot be continued; then the turn is rendered by itself.
            text = (
                whole.removeprefix(self._read) if whole.startswith(self._read) else self._rendered(self.messages[-1:])
            )
        self._read += text
        ids: Tensor = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return ids

    def answered(self, new_ids: "Tensor") -> str:
        """Remember an answer `[1, new]` and return its text."""
        self._read += self.tokenizer.decode(new_ids[0], skip_special_tokens=False)
        answer: str = self.tokenizer.decode(new_ids[0], skip_special_tokens=True)
        self.messages.append({"role": "assistant", "content": answer})  # as it was said: the next turn goes on from it
        return answer.strip()

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text
