import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from senri.cli import build_parser, main
from senri.cli import main as main_function
from senri.cli.main import COMMANDS

DOCUMENTED = [
    "senri convert --base HuggingFaceTB/SmolLM2-135M-Instruct --preset smollm_infini --out ./model",
    "senri convert --base ./weights.gguf --preset smollm_infini --out ./model memory.rule=delta",
    "senri read --model ./model --text book.txt --session book.senri",
    "senri read --model ./model --text book.txt --session book.senri --tokens all chunk_size=256",
    "senri ask --model ./model --session book.senri question",
    "senri chat --model ./model --session book.senri",
    "senri serve --model ./model",
    "senri demo",
    "senri demo --tokens all",
    "senri eval perplexity --model ./model --text book.txt",
    "senri memory inspect book.senri",
    "senri memory clean book.senri",
    "senri memory merge a.senri b.senri --out c.senri",
    "senri memory diff a.senri b.senri",
    "senri memory size book.senri",
    "senri export --remote-code --model ./model --out ./export",
]


PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
DOCUMENTED += re.findall(r"^ {4}(senri .*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("line", DOCUMENTED)
def test_documented_lines_are_understood(line: str):
    build_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_questions_stay_text_whatever_they_look_like():
    for question in ("null", "1: {a}", "[x]", "true", "3", "What is a list?"):
        found = build_parser().parse_args(["ask", "--model", "m", "--session", "s", question])
        assert found.ask.question == question


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"    {name}" in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert "--help" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "a command"),
        ("memory", "inspect, clean, merge, diff, size"),
        ("memry", "unknown command 'memry': did you mean 'memory'?"),
        ("memory frob", "known: clean, diff, inspect, merge, size"),
        ("", "convert, read, ask"),
        ("ask", "missing: question, model, session"),
        ("ask --model m --session s", "question"),
        ("read --model m --session s --tokens many", "--tokens is 'many', but it should be a whole number or 'all'"),
        ("read --model m --session s --colour red", "unknown option --colour"),
        ("read a=b --model m --session s c=d", "c=d stands apart"),
        ("memory clean a.senri --energy high", "--energy is 'high', but it should be a number"),
        ("memory clean a.senri --max-rank 2.5", "--max-rank is '2.5', but it should be a whole number"),
        ("convert --preset p --out o --dtype int8", "--dtype is 'int8', but it should be 'float32' or"),
        ("memory merge a.senri --out c.senri", "two or more"),
        ("export --model m --out o", "--remote-code"),
    ],
)
def test_wrong_words_are_one_sentence(complaint, line: str, said: str):
    assert said in complaint(*line.split())


@pytest.mark.parametrize("words", [["--text", ""], ["--text="], ["--text", " "]])
def test_an_empty_value_is_not_the_folder_at_hand(complaint, words: list[str]):
    assert "--text is empty" in complaint("read", "--model", "m", "--session", "s", *words)


def test_help_of_the_process_loads_no_commands_machinery(tmp_path: Path):
    """The commands themselves must not pull in what only some of them need."""
    code = (
        "import sys, types; package = types.ModuleType('senri'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['senri'] = package; import senri.cli; senri.cli.build_parser(); "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'transformers', 'matplotlib')))"
    )
    package = Path(sys.modules["senri"].__file__).parent
    assert subprocess.run([sys.executable, "-c", code, str(package)], check=False).returncode == 0


def test_ctrl_c_anywhere_is_said_and_exits_with_130(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[main_function.__module__], "call", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "senri: interrupted; no file is half written.\n"


def test_sigterm_ends_a_command_as_ctrl_c_does(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys.modules[main_function.__module__], "call", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["demo"]) == 130
    assert "no file is half written" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
