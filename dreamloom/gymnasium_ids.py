"""Makes `dreamloom/World-v0` known to Gymnasium as soon as both are imported, in whichever order; neither imports the other.

Gymnasium 1.0 gave up entry points: a package registers its environments when it is imported. Importing Gymnasium for that
would cost `import dreamloom` its lightness, so that where Gymnasium comes second, its registry's import is waited for.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

REGISTRY = "gymnasium.envs.registration"
ENVIRONMENTS = {
    "dreamloom/World-v0": {
        "entry_point": "dreamloom.worldmodels.imagined:ImaginedEnv",
        "vector_entry_point": "dreamloom.worldmodels.imagined:ImaginedVectorEnv",
    }
}


def register() -> None:
    """Registers the environments now, or when Gymnasium is imported."""
    if REGISTRY in sys.modules:
        _register_in(sys.modules[REGISTRY])
    else:
        sys.meta_path.insert(0, _Watcher())


def _register_in(registration: Any) -> None:
    for name, entry_points in ENVIRONMENTS.items():
        if name not in registration.registry:
            registration.register(name, **entry_points)


class _Watcher(MetaPathFinder):
    """Finds nothing of its own; sees Gymnasium's registry come in, and goes away."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    """Loads a module as its own loader does, and registers the environments in it."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.own
        self.own.exec_module(module)
        _register_in(module)
