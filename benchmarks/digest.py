"""A digest of the code that a result depends on: an algorithm's module and what it uses of this package."""

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

#: Of a module that is given, or whose parts can't be told apart: everything
_ALL = "*"


def code_digest(*modules: str) -> str:
    """
    Digest of modules of this package and of all that they use of it: whole modules that are given, of others the
    classes, functions and constants that are imported and what these use in turn. Comments, docstrings and format don't
    count, nor do imports for type checkers alone, so that most of what can't change a result leaves the digest alone.
    It is the same under every version of Python.

    :param modules: Dotted names, such as ``"sb3_swfp.swfp"``
    :return: 12 hexadecimal digits
    :raises FileNotFoundError: if there is no such module
    """
    parts: dict[str, _Module] = {}
    waiting = [(name, _ALL) for name in modules]
    while waiting:
        name, wanted = waiting.pop()
        if name not in parts:
            parts[name] = _Module(name)
        waiting += parts[name].use(wanted)
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{name}\n{parts[name].dump()}\n".encode())
    return digest.hexdigest()[:12]


class _Module:
    """A module's statements, and which of them are used."""

    def __init__(self, name: str):
        self.statements = _Stripped().visit(ast.parse(_path(name).read_text(encoding="utf-8"))).body
        self.used: set[int] = set()
        self._defined: dict[str, set[int]] = {}
        #: Statements that define nothing run when the module is imported
        self._always: set[int] = set()
        for i, statement in enumerate(self.statements):
            names = set(_definitions(statement))
            # What stands in an `if` or a `try` may be defined in another place as well
            if not names or not isinstance(statement, _SIMPLE):
                self._always.add(i)
            for each in names:
                self._defined.setdefault(each, set()).add(i)

    def use(self, name: str) -> list[tuple[str, str]]:
        """
        Mark what a name needs.

        :param name: One that the module defines, or all
        :return: What it needs of other modules, each with the module it is in
        """
        elsewhere = []
        # A name that isn't defined here is found some other way, as by a module's ``__getattr__``
        whole = name == _ALL or name not in self._defined
        waiting = set(range(len(self.statements))) if whole else self._always | self._defined[name]
        while waiting := waiting - self.used:
            i = min(waiting)
            self.used.add(i)
            elsewhere += list(_imports(self.statements[i]))
            for node in ast.walk(self.statements[i]):
                if isinstance(node, ast.Name):
                    waiting = waiting | self._defined.get(node.id, set())
        return elsewhere

    def dump(self) -> str:
        """The used statements, as they were parsed."""
        return "\n".join(ast.dump(self.statements[i], **_DUMP) for i in sorted(self.used))


#: Statements that count only if a name that they define is used. A decorator or call among them that did more, such as
#: registering something, would have to be seen in another way; no module here has one
_SIMPLE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)


def _definitions(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement at the top of a module defines."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name


def _path(module: str) -> Path:
    assert sb3_swfp.__file__ is not None
    place = Path(sb3_swfp.__file__).parent.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Modules of this package that are imported, each with a name that is imported of it, or all."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, _ALL) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module of its own
            found = [(node.module, alias.name) for alias in node.names]
            found = [(f"{m}.{n}", _ALL) if m.startswith(_NAME) and _is_file(f"{m}.{n}") else (m, n) for m, n in found]
        else:
            continue
        # The package itself only lists public names: what is used of it is imported from where it lives
        yield from ((m, n) for m, n in found if m.startswith(f"{_NAME}.") and _is_file(m))


def _is_file(module: str) -> bool:
    return _path(module).is_file()


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
