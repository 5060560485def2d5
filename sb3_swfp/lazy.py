"""Public names that are loaded when they are first used (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """
    :param package: Name of the package
    :param homes: The module in it that each public name lives in; a name that is its own home is that module
    :return: The package's ``__getattr__`` and ``__dir__``
    """

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{homes[name]}")
        value = module if homes[name] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)  # found directly from now on
        return value

    def names() -> list[str]:
        # With those not loaded yet, for tab completion
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names
