"""Packages that only the report needs."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def optional(module: str) -> Any:
    """
    Import a module when it is needed: rliable and what it imports take seconds that a cell shall not pay.

    :param module: Dotted name, such as ``"rliable.library"``
    :return: The module
    :raises ImportError: if it is missing, with the command that installs it
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f'The report needs {package}, which is missing: pip install "sb3-swfp[zoo]"') from error
