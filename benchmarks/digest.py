"""A digest of the code that a result depends on: an algorithm's module and what it imports of this package."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sb3_swfp

_NAME = sb3_swfp.__name__

#: Python 3.13 leaves empty lists out unless told, older ones write them
_DUMP: dict[str, Any] = {"show_empty": True} if sys.version_info >= (3, 13) else {}


def code_digest(*modules: str) -> str:
    """
    Digest of modules of this package and of all that they import of it. Comments, docstrings and format don't count,
    nor do imports for type checkers alone, so only a change that can change a result changes the digest. It is the same
    under every version of Python.

    :param modules: Dotted names, such as ``"sb3_swfp.swfp"``
    :return: 12 hexadecimal digits
    :raises FileNotFoundError: if there is no such module
    """
    waiting, trees = list(modules), {}
    while waiting:
        name = waiting.pop()
        if name not in trees:
            trees[name] = tree = _Stripped().visit(ast.parse(_path(name).read_text(encoding="utf-8")))
            waiting += _imports(tree)
    digest = hashlib.sha256()
    for name in sorted(trees):
        digest.update(f"{name}\n{ast.dump(trees[name], **_DUMP)}\n".encode())
    return digest.hexdigest()[:12]


def _path(module: str) -> Path:
    assert sb3_swfp.__file__ is not None
    place = Path(sb3_swfp.__file__).parent.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        # The package itself only lists public names: what is used of it is imported from where it lives
        yield from (name for name in names if name.startswith(f"{_NAME}.") and _path(name).is_file())


class _Stripped(ast.NodeTransformer):
    """Without docstrings and without what only type checkers see: their imports, functions' annotations."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
        if getattr(node, "type_params", None) == []:
            del node.type_params  # type: ignore[attr-defined]  # Python 3.12 and later have it
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
