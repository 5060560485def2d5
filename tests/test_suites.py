"""The suites: complete settings, and a digest that changes when and only when the code does."""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

pytest.importorskip("rl_zoo3", reason='needs RL Zoo: pip install "sb3-swfp[zoo]"')

from benchmarks import digest, toy_runs  # noqa: E402
from benchmarks.algorithms import ALGORITHMS, merge, named  # noqa: E402
from benchmarks.cells import Cell  # noqa: E402
from benchmarks.digest import code_digest  # noqa: E402
from benchmarks.suites import SUITES, studies  # noqa: E402
from benchmarks.suites.finetuning import prepare, run  # noqa: E402


@pytest.mark.parametrize("name", SUITES)
def test_settings_are_json_and_do_not_depend_on_the_seed(name: str) -> None:
    suite = SUITES[name]
    for task in suite.tasks:
        for algo in suite.algos:
            first, second = (suite.settings(Cell(name, task, algo, seed)) for seed in (0, 1))
            assert first == second and json.loads(json.dumps(first))
            # What is this package's is known by its code, whatever modules the suite names beside the algorithm's
            assert ("code" in suite.versions(algo)) == suite.module(algo).startswith("sb3_swfp.")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_know_their_arguments(name: str) -> None:
    algorithm = ALGORITHMS[name]
    known: set[str] = set()
    for cls in named(algorithm.path).__mro__:
        if "__init__" in vars(cls):
            known |= set(inspect.signature(cls.__init__).parameters)
    assert set(algorithm.arguments) <= known
    assert (algorithm.pretrain is not None) == hasattr(named(algorithm.path), "pretrain")


def test_variants_differ_in_what_they_are_named_after() -> None:
    task = "pick-and-place"
    arguments = {
        algo: SUITES["blocks"].settings(Cell("blocks", task, algo, 0))["arguments"] for algo in SUITES["blocks"].algos
    }
    assert arguments["swfp-10-blocks"] == merge(arguments["swfp"], {"policy_kwargs": {"n_blocks": 10}})
    assert arguments["swfp"]["gradient_steps"] == 2  # the task's own
    one_after_the_other = SUITES["order"].settings(Cell("order", task, "swfp-sequential", 0))["arguments"]
    assert one_after_the_other["block_training"] == "sequential"


@pytest.mark.parametrize("name", studies.SUITES)
def test_studies_differ_from_the_demos_task_in_the_picks_alone(name: str) -> None:
    def settings(suite: str) -> dict[str, Any]:
        found = SUITES[suite].settings(Cell(suite, "pick-and-place", "swfp", 0))
        return found | {"arguments": found["arguments"] | {"policy_kwargs": dict(found["arguments"]["policy_kwargs"])}}

    of_study, of_task = settings(name), settings("fetch")
    assert of_study["arguments"]["policy_kwargs"].pop("n_candidates") == 1
    assert of_study == of_task
    for algo in SUITES[name].algos:
        variant = SUITES[name].settings(Cell(name, "pick-and-place", algo, 0))["arguments"]
        assert variant["policy_kwargs"]["n_candidates"] == 1 and variant["replay_buffer_kwargs"]


def test_a_shifting_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_runs, "CLONE_STEPS", 5)
    suite, cell = SUITES["shifting"], Cell("shifting", "bandit", "swfp", 0)
    details = suite.run(cell, suite.settings(cell), 80, tmp_path)
    curve = suite.curve(tmp_path)
    assert [step for step, _ in curve] == list(range(0, 81, 2)) and all(-1.0 < score < 0.0 for _, score in curve)
    assert [-score for _, score in curve] == details["flow_regret"]


def test_denormals_are_flushed_while_a_run_learns_and_not_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = th.tensor([1e-40])
    seen: list[float] = []

    class Model:
        device = "cpu"

        def learn(self, *_: Any, **__: Any) -> None:
            seen.append((2.0 * tiny).item())

        pretrain = learn

        def save(self, path: Path) -> None:
            pass

    monkeypatch.setattr(
        "benchmarks.suites.finetuning.prepare", lambda *_: (lambda: gym.make("Pendulum-v1"), None, None)
    )
    monkeypatch.setattr("benchmarks.suites.finetuning._make_model", lambda *_: Model())
    cell = Cell("adroit", "pen", "calql", 0)
    run(cell, SUITES["adroit"].settings(cell), 10, tmp_path)
    assert (2.0 * tiny).item() > 0.0  # for whoever else computes in this process
    if not th.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    assert seen == [0.0, 0.0]


@pytest.mark.parametrize(
    ("suite", "task"), [("adroit-blocks", "door"), ("adroit-blocks", "pen"), ("fetch-blocks", "pick-and-place")]
)
@pytest.mark.parametrize("algo", ["swfp", "ibrl", "dppo"])
def test_ten_blocks_differ_in_their_number_only(suite: str, task: str, algo: str) -> None:
    five, ten = (SUITES[suite].settings(Cell(suite, task, name, 0)) for name in (algo, f"{algo}-10-blocks"))
    assert ten["arguments"]["policy_kwargs"].pop("n_blocks") == 10
    if algo == "dppo":  # whose five-block form has no policy_kwargs at all
        assert ten["arguments"].pop("policy_kwargs") == {}
    assert ten == five == SUITES[suite.removesuffix("-blocks")].settings(Cell(suite, task, algo, 0))


@pytest.mark.parametrize("algo", ["swfp", "rlpd", "dppo"])
def test_a_cell_of_each_kind_runs(algo: str, shared_minari: Path, tmp_path: Path) -> None:
    pytest.importorskip("gymnasium_robotics")
    suite, cell = SUITES["adroit"], Cell("adroit", "door", algo, 0)
    settings = suite.settings(cell) | {"eval_episodes": 1, "eval_freq": 40}
    if settings["pretrain"]:
        settings["pretrain"] = {"gradient_steps": 5}
    settings["arguments"] |= {"n_steps": 40, "batch_size": 20, "n_epochs": 1} if algo == "dppo" else {}
    details = run(cell, settings, 40, tmp_path)
    assert [step for step, _ in suite.curve(tmp_path)] == [0, 40] and len(details["returns"]) == 2


@pytest.mark.parametrize("algo", SUITES["fetch"].algos)
def test_a_cell_with_hindsight_goals_runs(algo: str, tmp_path: Path) -> None:
    # All of them: the Gaussian actors have another policy for dictionaries
    pytest.importorskip("gymnasium_robotics")
    suite, cell = SUITES["fetch"], Cell("fetch", "pick-and-place", algo, 0)
    settings = suite.settings(cell) | {"n_demonstrations": 2, "eval_episodes": 1, "eval_freq": 60}
    on_policy = {"n_steps": 60, "batch_size": 20, "n_epochs": 1}
    settings["arguments"] |= on_policy if algo == "dppo" else {"batch_size": 20, "learning_starts": 50}
    if settings["pretrain"]:
        settings["pretrain"] = {"gradient_steps": 5}
    run(cell, settings, 60, tmp_path)
    assert [step for step, _ in suite.curve(tmp_path)] == [0, 60]


@pytest.mark.parametrize(("algo", "lowest"), [("rlpd-published", -1.0), ("calql-published", -5.0), ("swfp", -0.1)])
def test_published_settings_come_with_rewards_of_their_own(algo: str, lowest: float, shared_minari: Path) -> None:
    pytest.importorskip("gymnasium_robotics")
    settings = SUITES["adroit-published"].settings(Cell("adroit-published", "door", algo, 0))
    make_env, env, demonstrations = prepare(settings, 0)
    seen = {round(float(reward), 5) for episode in demonstrations for reward in episode.rewards}
    assert seen == {lowest, 10.0 if algo == "swfp" else 0.0}
    env.reset()
    assert env.step(np.zeros((1, 28)))[1][0] == pytest.approx(lowest)
    judge = make_env()  # what evaluates keeps the task's own
    judge.reset(seed=0)
    assert judge.step(np.zeros(28))[1] == pytest.approx(-0.1)


#: A module of which one function is imported, which uses another, which uses a constant
_C = "step = 1\ndef help(y):\n    return y + step\ndef thing(y):\n    return help(y)\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this package's layout in which files can be changed."""
    folder = tmp_path / "sb3_swfp"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "a.py").write_text("from sb3_swfp import b\nfrom sb3_swfp.c import thing\n")
    (folder / "b.py").write_text("x = 1\n")
    (folder / "c.py").write_text(_C)
    (folder / "d.py").write_text("z = 1\n")
    monkeypatch.setattr(digest.sb3_swfp, "__file__", str(folder / "__init__.py"))
    return folder


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("b.py", "x = 2\n", True),
        ("c.py", _C.replace("return help", "return -help"), True),
        # What the imported function uses, and what that uses
        ("c.py", _C.replace("y + step", "y - step"), True),
        ("c.py", _C.replace("step = 1", "step = 2"), True),
        ("c.py", _C.replace("step = 1", "step = 1\nstep = 2"), True),
        # Another function and its import, which nothing imported uses
        ("c.py", "from sb3_swfp import d\n" + _C + "def other(y):\n    return d.z\n", False),
        # An import within a function that is used, and a statement that is no definition
        ("c.py", _C.replace("return y", "from sb3_swfp import d\n    return y"), True),
        ("c.py", _C + "help(1)\n", True),
        # The name is found in some other way: all of the module counts
        ("c.py", "def __getattr__(name):\n    return len\n", True),
        ("d.py", "z = 2\n", False),
        ("b.py", "# a comment\nx   =   1\n", False),
        ("b.py", '"""A docstring."""\nx = 1\n', False),
        ("c.py", _C.replace("(y):", '(y: int) -> int:\n    """Also."""', 1), False),
        ("b.py", "if TYPE_CHECKING:\n    from sb3_swfp import d\nx = 1\n", False),
        ("b.py", "from sb3_swfp import d\nx = 1\n", True),
    ],
)
def test_digest_sees_what_can_change_a_result(package: Path, file: str, text: str, changes: bool) -> None:
    before = code_digest("sb3_swfp.a")
    (package / file).write_text(textwrap.dedent(text))
    assert (code_digest("sb3_swfp.a") != before) is changes


def test_digest_is_the_same_under_every_python(package: Path) -> None:
    # From 3.10 to 3.13: 3.12 added a field to functions, 3.13 hides empty ones
    assert code_digest("sb3_swfp.a") == "f036a5a7fca5"


def test_digest_of_a_module_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        code_digest("sb3_swfp.nothing")
