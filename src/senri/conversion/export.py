"""Write a model folder that carries Senri's code, for people who have transformers but not this package.

transformers loads such code from one flat folder of modules with relative imports, so every module that the model needs
is copied as `senri_<room>_<file>.py` with its imports rewritten.
"""

import ast
import json
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

from senri.errors import SenriError

ENTRY_POINTS = {
    "senri.models.configuration_senri": "configuration_senri",
    "senri.models.modeling_senri": "modeling_senri",
}
AUTO_MAP = {
    "AutoConfig": "configuration_senri.SenriConfig",
    "AutoModel": "modeling_senri.SenriModel",
    "AutoModelForCausalLM": "modeling_senri.SenriForCausalLM",
}


def export_remote_code(model_dir: str | Path, out: str | Path) -> None:
    """Copy a Senri model and the code it needs.

    Args:
        model_dir: folder of a saved Senri model.
        out: folder to write; must not exist yet or be empty.

    Raises:
        SenriError: `model_dir` is no Senri model, or `out` is in use or cannot be written.
    """
    source, target = Path(model_dir), Path(out)
    config_path = source / "config.json"
    if not config_path.is_file() or json.loads(config_path.read_text("utf-8")).get("model_type") != "senri":
        raise SenriError(f"{source} is not a Senri model folder: its config.json must say model_type 'senri'.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SenriError(f"{target} is in use: name a folder that does not exist yet.")
    work = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        shutil.copytree(source, work, dirs_exist_ok=True)
        for name, code in flat_modules().items():
            (work / f"{name}.py").write_text(code, "utf-8")
        config = json.loads(config_path.read_text("utf-8"))
        # transformers' server looks the class up by this name in transformers itself, where only Auto classes are.
        config["architectures"] = ["AutoModelForCausalLM"]
        config["auto_map"] = AUTO_MAP
        (work / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        work.chmod(0o755)
        if target.exists():
            target.rmdir()
        work.rename(target)
    except OSError as error:
        # copytree gathers the errors of all files into one without a reason of its own.
        reason = error.strerror or "a file cannot be copied"
        raise SenriError(
            f"the model cannot be exported to {target} ({reason}): make room or name another folder."
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def flat_modules() -> dict[str, str]:
    """Return the code of every module that the model needs, by flat name, with imports rewritten to be relative."""
    modules: dict[str, str] = {}
    waiting = list(ENTRY_POINTS)
    while waiting:
        module = waiting.pop()
        if _flat_name(module) in modules:
            continue
        code = _source(module)
        imports = _senri_imports(code)
        waiting.extend(name for node in imports for name in _modules_of(node))
        modules[_flat_name(module)] = _rewrite(code, imports)
    return modules


def _rewrite(code: str, imports: list[ast.ImportFrom]) -> str:
    lines = code.splitlines(keepends=True)
    for node in sorted(imports, key=lambda node: node.lineno, reverse=True):
        indent = " " * node.col_offset
        lines[node.lineno - 1 : node.end_lineno] = [f"{indent}{line}\n" for line in _relative(node)]
    return "".join(lines)


def _relative(node: ast.ImportFrom) -> list[str]:
    assert node.module is not None
    lines = []
    for alias in node.names:
        submodule = f"{node.module}.{alias.name}"
        name = alias.asname or alias.name
        if _is_module(submodule):
            flat = _flat_name(submodule)
            # transformers copies only files that it finds named in a `from .file import` line.
            lines += [f"from .{flat} import __name__ as _", f"from . import {flat} as {name}"]
        else:
            lines.append(f"from .{_flat_name(node.module)} import {alias.name} as {name}")
    return lines


def _senri_imports(code: str) -> list[ast.ImportFrom]:
    nodes = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom))
    return [node for node in nodes if node.module is not None and node.module.split(".")[0] == "senri"]


def _modules_of(node: ast.ImportFrom) -> list[str]:
    assert node.module is not None
    submodules = [f"{node.module}.{alias.name}" for alias in node.names]
    found = [name for name in submodules if _is_module(name)]
    return found if len(found) == len(submodules) else [node.module, *found]


def _flat_name(module: str) -> str:
    return ENTRY_POINTS.get(module, module.replace(".", "_"))


def _is_module(module: str) -> bool:
    path = files("senri").joinpath(*module.split(".")[1:-1], f"{module.split('.')[-1]}.py")
    return path.is_file()


def _source(module: str) -> str:
    parts = module.split(".")[1:]
    package = files("senri").joinpath(*parts, "__init__.py")
    path = package if package.is_file() else files("senri").joinpath(*parts[:-1], f"{parts[-1]}.py")
    return path.read_text("utf-8")
