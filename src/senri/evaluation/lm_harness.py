"""lm-eval's model `senri`: Senri checkpoints read every request as a stream; any other causal model is lm-eval's `hf`.

On its command line, `lm_eval --model senri --model_args pretrained=./model,chunk_size=512 --tasks ...` (`lm_eval_senri`
makes the name known); in Python, `SenriLM(pretrained=...)`. Needs lm-eval: `pip install 'senri[eval]'`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from senri.errors import SenriError
from senri.models import SenriForCausalLM, Session

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise SenriError(f"lm-eval cannot be imported ({error}): install it with pip install 'senri[eval]'.") from error

CHUNK_SIZE = 512
"""Tokens of one forward pass: large enough to fill the cores, small enough that the logits of a chunk that is scored
(512 x 49,152 float32 values are 100 MB) weigh little. Results do not depend on it."""

UNLIMITED = 2**31 - 1
"""`max_length` of a Senri model for which none is set: a stream has no longest text."""


@register_model("senri")
class SenriLM(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """lm-eval's `HFLM`, whose Senri models score and generate in a `Session`, so that any length needs the same memory.

    A context is read once, in chunks, and only its last logits are kept; continuations of the same context go on from
    copies of its state. For texts that `HFLM` does not have to cut the results are its own. Requests are run one by
    one, whatever `batch_size` says. While text is generated, penalties of repetition look at the new tokens and at the
    last one of the prompt.

    For models that are not Senri's everything is as in `HFLM`.

    Args:
        pretrained: a folder, a hub id, or a loaded model.
        *args: as for `HFLM`.
        chunk_size: tokens read in one forward pass.
        session: a session, or a session file of this model: every request begins from a copy of it, as asked of a model
            that has read a book. A tokenizer that puts a token at the start of every text does so within the session
            too; `add_bos_token=False` leaves it out.
        **kwargs: as for `HFLM`. With `max_length` set, requests longer than that lose their beginning, and documents
            are scored in windows of that length, as in `HFLM`; without it a document is one stream.

    Raises:
        SenriError: a chunk size below 1, or a session that does not fit the model.
    """

    def __init__(
        self,
        pretrained: Any,
        *args: Any,
        chunk_size: int = CHUNK_SIZE,
        session: str | Path | Session | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise SenriError(f"chunk_size is {chunk_size!r}, but it must be a number of tokens, at least 1.")
        self.chunk_size = chunk_size
        self._senri: SenriForCausalLM | None = None
        super().__init__(pretrained, *args, **kwargs)
        # An adapter (`peft=`) wraps the model, but the layers it changed are in the one found here.
        self._senri = next((part for part in self.model.modules() if isinstance(part, SenriForCausalLM)), None)
        self._start = None if session is None else self._open(session)
        if self._senri is not None:
            self.batch_size_per_gpu = 1

    @property
    def max_length(self) -> int:
        """Tokens of a request beyond which its beginning is cut off."""
        if self._senri is not None and not self._max_length:
            return UNLIMITED
        longest: int = super().max_length
        return longest

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole documents, each one stream after the prefix token.

        Args:
            requests: lm-eval's instances; their arguments are `(document,)`.
            disable_tqdm: show no progress.

        Returns:
            the log-likelihood of each document.
        """
        if self._senri is None or self._max_length:
            scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
            return scores
        scores = []
        quiet = disable_tqdm or self.rank != 0
        for request in tqdm(requests, desc="Running loglikelihood_rolling requests", disable=quiet):
            (text,) = request.args
            ids = self.tok_encode(text)
            with self._precision():
                session = self._begin()
                first = self._read(session, [self.prefix_token_id])
                score = self._score(session, first, ids)[0] if ids else 0.0
            scores.append(score)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), score)
        return scores

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score continuations; requests are (texts, context ids, continuation ids), answers (nats, is greedy)."""
        if self._senri is None:
            batched: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return batched
        contexts: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            room = self.max_length + 1 - len(continuation)
            if not context or not continuation or room < 1:
                raise SenriError(
                    f"a context of {len(context)} and a continuation of {len(continuation)} tokens cannot be scored: "
                    f"both need a token, and the continuation at most max_length ({self.max_length})."
                )
            contexts.setdefault(tuple(context[-room:]), []).append(index)
        answers: dict[int, tuple[float, bool]] = {}
        quiet = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=quiet) as progress:
            # The longest first, as lm-eval does: what is too much for the machine shows at once.
            for context_ids in sorted(contexts, key=len, reverse=True):
                with self._precision():
                    session = self._begin()
                    first = self._read(session, context_ids)
                for index in contexts[context_ids]:
                    texts, _, continuation = requests[index]
                    with self._precision():  # a single token is scored without reading on
                        twin = session.fork() if len(continuation) > 1 else session
                        answers[index] = self._score(twin, first, continuation)
                    if texts is not None:  # None for the windows of a document, which is kept as a whole
                        self.cache_hook.add_partial("loglikelihood", texts, answers[index])
                    progress.update()
        return [answers[index] for index in range(len(requests))]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """Return the prompt `[1, seq]` and what the model says after it, up to `max_length` tokens together."""
        if self._senri is None:
            whole: Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
            return whole
        from lm_eval.models.utils_hf import stop_sequences_criteria

        generation_kwargs.pop("attention_mask", None)  # one prompt has no padding
        if not generation_kwargs.get("do_sample"):
            generation_kwargs.pop("temperature", None)  # lm-eval's 0.0 for greedy, which transformers warns about
        session = self._begin()
        # `generate` sees the last token alone; the memories decide about the others as they would in there.
        with self._precision(), self._senri._deciding():
            if context.shape[1] > 1:
                self._read(session, context[0, :-1].tolist())
            new = session.generate_whole(
                context[:, -1:],
                keep=False,
                max_new_tokens=max_length - context.shape[1],
                stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, 1, 1),
                pad_token_id=self.tokenizer.pad_token_id,
                **generation_kwargs,
            )
        return torch.cat([context[:, :-1], new.to(context.device)], dim=1)

    def _open(self, session: str | Path | Session) -> Session:
        if self._senri is None:
            raise SenriError(f"session: {type(self.model).__name__} is no Senri model, and only these have sessions.")
        opened = session if isinstance(session, Session) else Session.load(session, self._senri)
        if opened.model is not self._senri:
            raise SenriError("the session is of another loaded model: open it with the one that is evaluated.")
        if opened.batch_size != 1:
            raise SenriError(f"the session has {opened.batch_size} rows, but requests go on from one: read with one.")
        return opened

    def _begin(self) -> Session:
        return Session(self._senri) if self._start is None else self._start.fork()

    def _precision(self) -> AbstractContextManager[Any]:
        kind = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=kind, enabled=kind is not None)

    def _read(self, session: Session, ids: Sequence[int]) -> Tensor:
        """Read tokens, at least one, and return the logits after the last, `[1, vocab]`."""
        for start in range(0, len(ids), self.chunk_size):
            last = session.read(torch.tensor([ids[start : start + self.chunk_size]]))
        return last

    def _score(self, session: Session, first: Tensor, ids: list[int]) -> tuple[float, bool]:
        """Return the log-likelihood of `ids` after what the session read, and whether each is the likeliest token.

        Args:
            session: what reads on; it is left before the last of `ids`.
            first: its logits after what it read, `[1, vocab]`.
            ids: at least one.
        """
        score, is_greedy = self._compare(first, ids[:1])
        for start in range(0, len(ids) - 1, self.chunk_size):
            chunk = ids[:-1][start : start + self.chunk_size]
            logits = session.logits(torch.tensor([chunk]))[0]
            more, likeliest = self._compare(logits, ids[start + 1 : start + 1 + len(chunk)])
            score, is_greedy = score + more, is_greedy and likeliest
        return score, is_greedy

    def _compare(self, logits: Tensor, ids: list[int]) -> tuple[float, bool]:
        targets = torch.tensor(ids, device=logits.device)
        log_probs = F.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        score = float(log_probs.gather(1, targets[:, None]).sum())
        return score, bool((logits.argmax(dim=-1) == targets).all())
