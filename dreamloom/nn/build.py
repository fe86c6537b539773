"""Modules that remember how they were built, so that a checkpoint or a bundle is weights plus plain data, never a pickle."""

import functools
import inspect
from collections.abc import Callable, Container
from importlib import import_module
from typing import Any


class Buildable:
    """Mix-in: `config` holds the class path and the constructor's arguments (jsonargparse's spelling), nested parts included.

    Arguments must be plain data (numbers, strings, lists) or other Buildable parts.
    """

    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _recorded(cls.__init__)  # type: ignore[method-assign]


def _recorded(init: Callable) -> Callable:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if "config" not in vars(self):  # the outermost class of a hierarchy records
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            init_args = {name: _plain(value) for name, value in bound.arguments.items() if name != "self"}
            path = f"{type(self).__module__}.{type(self).__qualname__}"
            object.__setattr__(self, "config", {"class_path": path, "init_args": init_args})
        init(self, *args, **kwargs)

    return wrapped


def _plain(value: Any) -> Any:
    if isinstance(value, Buildable):
        return value.config
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    assert value is None or isinstance(value, bool | int | float | str), f"{value!r} is not plain data"
    return value


def build(config: Any, allowed: Container[str]) -> Any:
    """Builds the module, or the Buildable that is none (a solver), that a `config` describes.

    Args:
        config: `{"class_path": ..., "init_args": {...}}`, as `Buildable.config` gives it.
        allowed: class paths that may be built; nothing else is imported.

    Raises:
        ValueError: if the config is malformed, names a class that is not allowed, or does not fit its constructor.
    """
    if not isinstance(config, dict) or not isinstance(config.get("init_args"), dict) or "class_path" not in config:
        raise ValueError(f"a part needs class_path and init_args, got {str(config)[:80]!r}")
    path = config["class_path"]
    if not isinstance(path, str) or path not in allowed:
        raise ValueError(f"class {str(path)[:80]!r} is not one that may be built from a file")
    module, name = path.rsplit(".", 1)
    init_args = {k: build(v, allowed) if isinstance(v, dict) else v for k, v in config["init_args"].items()}
    try:
        return getattr(import_module(module), name)(**init_args)
    except (TypeError, AssertionError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{path} cannot be built from {str(config['init_args'])[:200]}: {error}") from error
