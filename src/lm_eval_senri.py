"""Makes `lm_eval --model senri` known to lm-eval's own command line, in whose process nobody imports senri.

lm-eval has no entry points for models of other packages. But it imports torch, and torch (2.5 and newer), at the end of
its own import, loads and calls every entry point of the group `torch.backends`, which is meant for device backends.
Senri puts `register` there for no other reason than to be called in such a process; it is no backend and gives torch
nothing. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` switches all of that group off, this one included: then import
`senri.evaluation.lm_harness` before asking lm-eval for the model.

Every `import torch` on the machine runs this module, so it imports nothing heavy, neither torch nor senri nor lm_eval,
and whatever goes wrong in it must not make torch's import fail.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MODELS = "lm_eval.models"


def register() -> None:
    """Make the model `senri` known to lm-eval: now if its models are imported already, else as soon as they are."""
    if _MODELS in sys.modules:
        _register_model()
    elif not any(isinstance(finder, _ModelsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ModelsFinder())


class _ModelsFinder:
    """Finds `lm_eval.models` as Python itself does, registers Senri's model after its import, and goes away."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of `lm_eval.models`, None for every other module."""
        spec = PathFinder.find_spec(name, path, target) if name == _MODELS else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register_model()

        # The spec and its loader are this finder's own, so nobody else sees the change.
        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register_model() -> None:
    try:
        from lm_eval.api.registry import model_registry
    except ImportError:  # an older lm-eval: it will say that it does not know the model
        return
    if "senri" not in model_registry:
        model_registry.register("senri", target="senri.evaluation.lm_harness:SenriLM")
