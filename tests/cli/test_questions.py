import io
import sys

import pytest
import torch

from senri.cli.generation import Conversation, GenerateSettings
from senri.errors import SenriError
from senri.memory import MemoryState
from senri.models import SenriForCausalLM, Session


def asked(model, session, *more):
    return ["ask", "--model", model, "--session", session, "What is the sum of 3 and 3?", "max_new_tokens=6", *more]


def expected_answer(model_folder, session, tokenizer, **arguments) -> str:
    model = SenriForCausalLM.from_pretrained(model_folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the sum of 3 and 3?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    new = Session.load(session, model).generate(prompt, max_new_tokens=6, **arguments)
    return tokenizer.decode(new[0], skip_special_tokens=True).strip()


def test_an_answer_follows_from_what_was_read_and_the_file_stays(senri, read_session, model_folder, tokenizer, capsys):
    before = read_session.read_bytes()
    wanted = expected_answer(model_folder, read_session, tokenizer, do_sample=False)
    assert senri(*asked(model_folder, read_session)) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == wanted
    assert shown.err == ""
    assert read_session.read_bytes() == before


def test_saved_question_and_answer_become_part_of_the_session(senri, read_session, model_folder):
    assert senri(*asked(model_folder, read_session)[:-1], "max_new_tokens=6", "temperature=0.8") == 0
    assert MemoryState.load(read_session).header.tokens_read == 200
    words = asked(model_folder, read_session)
    assert senri(*words[:5], "--save", *words[5:]) == 0
    assert MemoryState.load(read_session).header.tokens_read > 206


def test_a_merged_memory_answers_too(senri, read_session, model_folder, tmp_path, capsys):
    merged = tmp_path / "merged.senri"
    assert senri("memory", "merge", read_session, read_session, "--out", merged) == 0
    assert senri(*asked(model_folder, merged)) == 0


def test_questions_that_cannot_be_asked_are_refused(
    complaint, read_session, model_folder, other_model_folder, tmp_path
):
    where = ["--model", model_folder, "--session", read_session]
    assert "question is empty" in complaint("ask", *where, "  ")
    assert "does not exist" in complaint(*asked(model_folder, tmp_path / "none.senri"))
    assert "another model" in complaint(*asked(other_model_folder, read_session))
    assert "max_new_tokens is 0" in complaint("ask", *where, "why?", "max_new_tokens=0")
    assert "temperature is -1" in complaint("ask", *where, "why?", "temperature=-1.0")
    assert "top_p is 2" in complaint("ask", *where, "why?", "top_p=2.0")
    assert "'temperature'" in complaint("ask", *where, "why?", "temprature=1.0")


def test_sampling_repeats_with_its_seed(senri, read_session, model_folder, capsys):
    answers = []
    for seed in (1, 1, 2):
        assert senri(*asked(model_folder, read_session, "temperature=2.0", f"seed={seed}")) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_a_chat_ends_with_quit_or_with_its_input_and_saves_when_asked(
    senri, read_session, model_folder, monkeypatch, capsys
):
    before = read_session.read_bytes()
    where = ["chat", "--model", model_folder, "--session", read_session]
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\nand again\n/quit\nnever read\n"))
    assert senri(*where, "max_new_tokens=4") == 0
    assert read_session.read_bytes() == before
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert senri(*where, "--save", "max_new_tokens=4") == 0
    assert MemoryState.load(read_session).header.tokens_read > 204
    assert "kept in" in capsys.readouterr().err


def test_a_chat_cleans_its_memory_while_it_waits(senri, read_session, model_folder, monkeypatch, tmp_path):
    ranks = {}
    for idle in ("true", "false"):
        kept = tmp_path / f"{idle}.senri"
        kept.write_bytes(read_session.read_bytes())
        monkeypatch.setattr(sys, "stdin", io.StringIO("/quit\n"))
        words = ["chat", "--model", model_folder, "--session", kept, "--save", f"clean_when_idle={idle}"]
        assert senri(*words) == 0
        ranks[idle] = sum(row.effective_rank for row in MemoryState.load(kept).inspect())
    assert ranks["true"] < ranks["false"]


def test_turns_continue_the_rendered_conversation(tokenizer):
    """What the session reads over three turns is the template of the whole conversation."""
    conversation = Conversation(tokenizer)
    read = []
    for question, answer in (("one", "two<|im_end|>"), ("three", "cut off"), ("five", "six<|im_end|>")):
        read += conversation.ask(question)[0].tolist()
        new = tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
        conversation.answered(new)
        read += new[0].tolist()
    whole = tokenizer.apply_chat_template(conversation.messages, tokenize=False)
    assert tokenizer.decode(read) == whole.removesuffix("\n")
    assert [message["content"] for message in conversation.messages] == [
        "one",
        "two",
        "three",
        "cut off",
        "five",
        "six",
    ]


def test_without_a_chat_template_the_line_itself_is_read():
    class Bare:
        chat_template = None

        def __call__(self, text, **_):
            return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

    ids = Conversation(Bare()).ask("hi")
    assert "".join(map(chr, ids[0].tolist())) == "hi\n"


def test_greedy_is_the_default():
    assert GenerateSettings(5, 0.0, 1.0, 0, False).arguments()["do_sample"] is False
    with pytest.raises(SenriError, match="max_new_tokens"):
        GenerateSettings(0, 0.0, 1.0, 0, False)
