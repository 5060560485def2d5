"""What the documents promise: links lead somewhere, code fits the package, commands and logged keys exist."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from tiny import Mirror, metrics, mirror_demonstrations, tiny_model, with_demonstrations

import sb3_swfp
from sb3_swfp import baselines, callbacks, evaluation

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCES = [
    path for folder in ("sb3_swfp", "benchmarks", "examples", "tests") for path in ROOT.glob(f"{folder}/**/*.py")
]

on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    """:return: the page's code blocks in a language"""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def anchors(page: Path) -> set[str]:
    """:return: the anchors of a page, of headings as GitHub makes them"""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+ (.+?)(?: *<a id=.*)?$", text, re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-"))
    return found


def links(page: Path) -> list[str]:
    """:return: the targets of a page's links that stay in the repository"""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def assert_leads_somewhere(page: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    path = (page.parent / unquote(name)).resolve() if name else page
    assert path.exists(), f"{page.name}: {target}"
    if anchor and path.suffix == ".md":
        assert anchor in anchors(path), f"{page.name}: {target}"


@on_every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        assert_leads_somewhere(page, target)


def test_comments_name_pages_and_anchors_that_exist() -> None:
    named = [
        (path, each) for path in SOURCES for each in re.findall(r"docs/[\w-]+\.md(?:#[\w-]+)?", path.read_text("utf-8"))
    ]
    assert named
    for path, each in named:
        assert_leads_somewhere(ROOT / path.name, each)


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in index] == ["index.md"]


def public() -> dict[str, Any]:
    """:return: what the documents call, by name"""
    modules = [(sb3_swfp, sb3_swfp.__all__), (baselines, baselines.__all__)]
    modules += [(each, [name for name in vars(each) if not name.startswith("_")]) for each in (callbacks, evaluation)]
    return {name: getattr(module, name) for module, names in modules for name in names}


def known_arguments(function: Any) -> set[str] | None:
    """:return: names of its arguments, a class's with its bases' as far as it hands on any; ``None`` if it takes all"""
    functions = [function]
    if inspect.isclass(function):
        functions = [vars(each)["__init__"] for each in function.__mro__ if "__init__" in vars(each)]
    known: set[str] = set()
    for each in functions:
        parameters = inspect.signature(each).parameters
        known |= set(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return known
    return None


def calls(page: Path) -> Iterator[tuple[str, list[str]]]:
    """:return: each call in the page's Python: the last part of its name and its keywords"""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                yield name, [keyword.arg for keyword in node.keywords if keyword.arg is not None]


@on_every_page
def test_python_calls_what_there_is(page: Path) -> None:
    found = public()
    methods = {name: getattr(sb3_swfp.SWFP, name) for name in ("pretrain", "learn", "predict")}
    for name, keywords in calls(page):
        function = methods.get(name, found.get(name))
        known = None if function is None else known_arguments(function)
        assert known is None or set(keywords) <= known, f"{page.name}: {name}({', '.join(keywords)})"


def test_calls_are_seen_where_there_are_some() -> None:
    """Without this, a typing error above would make every page pass."""
    seen = [call for page in PAGES for call in calls(page) if call[0] in public() and call[1]]
    assert len(seen) > 10
    assert known_arguments(sb3_swfp.SWFP) is not None and known_arguments(baselines.RLPD) is not None


@on_every_page
def test_imports_are_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sb3_swfp"):
                module = __import__(str(node.module), fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names), f"{page.name}: {ast.unparse(node)}"


@on_every_page
def test_yaml_can_be_read(page: Path) -> None:
    yaml = pytest.importorskip("yaml", reason='comes with RL Zoo: pip install "sb3-swfp[zoo]"')
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


def benchmark_commands(page: Path) -> list[str]:
    """:return: what follows ``python -m benchmarks`` in the page's code"""
    lines = [line.partition("#")[0] for block in blocks(page, "") for line in block.splitlines()]
    return [match[1] for line in lines if (match := re.match(r"python -m benchmarks (\w.*)", line))]


def test_benchmark_commands_are_known() -> None:
    pytest.importorskip("rl_zoo3", reason='needs RL Zoo: pip install "sb3-swfp[zoo]"')
    from benchmarks.__main__ import _choose, _parser
    from benchmarks.suites import SUITES

    commands = [command for page in PAGES for command in benchmark_commands(page)]
    assert len(commands) > len(SUITES)
    for command in commands:
        parsed = _parser().parse_args(shlex.split(command))
        if parsed.command == "run":
            suite = SUITES[parsed.suite]
            _choose("task", parsed.tasks, tuple(suite.tasks))
            _choose("algorithm", parsed.algos, suite.algos)


def test_what_is_logged_is_explained() -> None:
    """Every key has a row in metrics.md, and every row of SWFP's tables is logged."""
    tables, _, _ = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").partition("## train: the baselines' own")
    rows = set(re.findall(r"^\| `train/(\w+(?:<n>)?)`", tables, re.MULTILINE))
    model = tiny_model(Mirror(), ent_coef="auto", **with_demonstrations(mirror_demonstrations(3)))
    model.pretrain(gradient_steps=5)
    model.policy.critic_is_ripe.fill_(True)
    model.critic_warmup = 0
    logged = {re.sub(r"_block_\d+$", "_block_<n>", name) for name in metrics(model.learn(150))}
    assert logged | {"learning_rate"} == rows
