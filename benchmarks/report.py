"""Tables and figures from stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.reporting.curves import draw
from benchmarks.reporting.overall import overall
from benchmarks.reporting.sections import LEGEND, section
from benchmarks.reporting.statistics import summarise
from benchmarks.reporting.stored import collect
from benchmarks.suites import MAIN_COMPARISON
from sb3_swfp.files import atomic_path


def report(suites: str | Sequence[str], root: Path, out: Path | None = None) -> str:
    """
    Tables of suites in Markdown and, with ``out``, a page of them with figures beside it. The same results give the
    same bytes; only the part under "Cost" depends on how fast they were made. With a page, and where one of
    ``MAIN_COMPARISON`` is among the suites, a table over the tasks of all of these comes first.

    Each suite's part of the page stands between two comments and is replaced by the next report; what else is written
    on the page, other suites' parts included, stays as it is.

    :param suites: Names of suites, or of one
    :param root: Folder of all results
    :param out: The page; figures go to ``figures/results-<suite>-<task>.png`` beside it. ``None`` writes nothing
    :return: The tables
    :raises FileNotFoundError: if there are no results of any of them
    :raises ValueError: if there are results that must not be averaged (:func:`~benchmarks.reporting.stored.collect`,
        :func:`~benchmarks.reporting.overall.overall`), or a comment on the page that begins a part and none that ends
        it; nothing is written then
    :raises ImportError: if rliable or matplotlib is missing
    """
    names = [suites] if isinstance(suites, str) else list(suites)
    # A page's table of all of these must not be older than any of them
    main = MAIN_COMPARISON if out is not None and not set(names).isdisjoint(MAIN_COMPARISON) else ()
    collected, problems = {}, []
    for name in dict.fromkeys((*names, *main)):
        try:
            collected[name] = collect(name, root)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    stored = [collected[name] for name in names]
    if not any(each.all for each in stored):
        commands = " or ".join(f"python -m benchmarks run --suite {name}" for name in names)
        raise FileNotFoundError(f"No results of {', '.join(names)} in {root}: {commands}")
    summaries = {
        name: {key: summarise(results) for key, results in each.results.items()} for name, each in collected.items()
    }
    figures = "figures" if out is not None else None
    parts = {each.name: section(each, summaries[each.name], figures) for each in stored}
    if main:
        parts = {"main": overall([collected[name] for name in main], summaries), **parts}
    if out is not None:
        page = _with_parts(out, {"legend": LEGEND, **parts})  # first: a page that is broken is left alone
        folder = out.parent / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for each in stored:
            for task in each.tasks:
                draw(each, task, summaries[each.name], folder)
        with atomic_path(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return "\n\n".join([*parts.values(), LEGEND]) + "\n"


def _with_parts(path: Path, parts: Mapping[str, str]) -> str:
    """The page with these parts between their comments, replaced where they are there and else at the end."""
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
    for name, content in parts.items():
        begin = f"<!-- report {name}: made by python -m benchmarks report, do not edit -->"
        end = f"<!-- end of report {name} -->"
        part = f"{begin}\n\n{content}\n\n{end}"
        before, begins, rest = text.partition(begin)
        if not begins:
            text = f"{text.rstrip()}\n\n{part}\n"
            continue
        _, ends, after = rest.partition(end)
        if not ends:
            raise ValueError(f"{path}: {begin!r} is not followed by {end!r}; remove the one or add the other")
        text = before + part + after
    return text
