"""What the README shows is true: its Python compiles and imports, and its commands are commands."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^ *(senri .*)$", README, flags=re.MULTILINE)
LINKS = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
MAKE_TARGETS = sorted(set(re.findall(r"(?:^ {4}|`|whl/cpu )make ([a-z-]+)", README, flags=re.MULTILINE)))


def test_the_readme_shows_python_and_commands() -> None:
    assert len(PYTHON_BLOCKS) >= 3
    assert len(COMMANDS) >= 10
    assert {"demo", "test", "test-fast", "lint", "bench"} <= set(MAKE_TARGETS)


@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_compiles_and_its_imports_resolve(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("block", [block for block in PYTHON_BLOCKS if "./model" not in block])
def test_python_that_needs_no_model_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one(command: str) -> None:
    from senri.cli import build_parser

    build_parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("link", LINKS)
def test_a_link_leads_somewhere(link: str) -> None:
    assert (Path(__file__).parents[1] / link).exists()


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_a_make_target_exists(target: str) -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
