"""How a cell fine-tunes from demonstrations: the same environment, data, budget and evaluation for each algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.algorithms import ALGORITHMS, Algorithm, merge, named
from benchmarks.cells import Cell
from benchmarks.suites.base import Curve, Suite

_HISTORY = "curve.csv"


@dataclass(frozen=True)
class Task:
    """
    :param env: Environment id
    :param package: Package that registers it, if not Gymnasium
    :param dataset: What ``load_demonstrations`` takes
    :param n_demonstrations: How many of its episodes
    :param steps: Environment steps of fine-tuning
    :param eval_freq: Environment steps from one evaluation to the next
    :param eval_episodes: Fixed episodes an evaluation
    :param arguments: Arguments of every off-policy algorithm here, in place of the matched ones
    :param of_algorithm: Arguments of one algorithm here, by its name
    :param rewards: Scale and bias of the rewards that an algorithm learns from, by its name; others get the task's own.
        This module's ``prepare`` applies them
    :param prepare: Function that makes environments and demonstrations, by its dotted name: settings and seed -> a
        function that makes one environment, the training environment, what ``load_demonstrations`` takes
    """

    env: str
    package: str | None
    dataset: str
    n_demonstrations: int
    steps: int = 30_000
    eval_freq: int = 3_000
    eval_episodes: int = 50
    arguments: Mapping[str, Any] = field(default_factory=dict)
    of_algorithm: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rewards: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    prepare: str = "benchmarks.suites.finetuning.prepare"


def finetuning_suite(
    description: str,
    tasks: Mapping[str, Task],
    algorithms: Mapping[str, Algorithm],
    how_to_make: Callable[[str], str] | None = None,
) -> Suite:
    """
    :param description: One line
    :param tasks: The tasks by name
    :param algorithms: The algorithms by name
    :param how_to_make: Of a data set that is missing, what to tell; by default what ``load_demonstrations`` does
    :return: A suite of them
    """
    return Suite(
        description,
        "success rate over 50 fixed episodes",
        {name: task.steps for name, task in tasks.items()},
        tuple(algorithms),
        partial(_settings, tasks, algorithms),
        lambda algo: algorithms[algo].module,
        run,
        curve,
        partial(_check, tasks, how_to_make),
        True,
        ("sb3_swfp.callbacks",),
        ("gymnasium-robotics", "minari"),
    )


def _check(tasks: Mapping[str, Task], how_to_make: Callable[[str], str] | None, name: str) -> None:
    task = tasks[name]
    if task.package is not None and find_spec(task.package) is None:
        raise ImportError(_needs(task.env, task.package))
    if task.prepare.startswith(f"{__name__}."):
        from sb3_swfp import load_demonstrations

        try:
            load_demonstrations(task.dataset, task.n_demonstrations)
        except FileNotFoundError as error:
            if how_to_make is None:
                raise
            raise FileNotFoundError(how_to_make(task.dataset)) from error


def _needs(env: str, package: str) -> str:
    return f'{env} needs {package}: pip install "sb3-swfp[all]"'


def main_algorithms(*names: str) -> dict[str, Algorithm]:
    """
    :param names: Names in ``ALGORITHMS``
    :return: These
    """
    return {name: ALGORITHMS[name] for name in names}


def _settings(tasks: Mapping[str, Task], algorithms: Mapping[str, Algorithm], cell: Cell) -> dict[str, Any]:
    task, algorithm = tasks[cell.task], algorithms[cell.algo]
    apart = ("steps", "arguments", "of_algorithm", "rewards")
    described = {item.name: getattr(task, item.name) for item in fields(task) if item.name not in apart}
    return described | {
        "algorithm": algorithm.path,
        "policy": algorithm.policy,
        "arguments": merge(
            merge(algorithm.arguments, task.arguments) if algorithm.matched else algorithm.arguments,
            task.of_algorithm.get(cell.algo, {}),
        ),
        "pretrain": None if algorithm.pretrain is None else dict(algorithm.pretrain),
        "reward": list(task.rewards.get(cell.algo, (1.0, 0.0))),
    }


def run(cell: Cell, settings: dict[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    """
    Clone where the algorithm clones, fine-tune, evaluate on fixed episodes.

    :param cell: The cell
    :param settings: All settings
    :param steps: Environment steps of fine-tuning
    :param folder: Where the curve and the model go
    :return: The last training metrics
    """
    from sb3_swfp.callbacks import SuccessEvalCallback

    make_env, env, demonstrations = named(settings["prepare"])(settings, cell.seed)
    model = _make_model(settings, env, demonstrations, cell.seed)
    evaluation = SuccessEvalCallback(
        make_env,
        eval_freq=settings["eval_freq"],
        n_eval_episodes=settings["eval_episodes"],
        history_path=folder / _HISTORY,
    )
    with _without_denormals():
        if settings["pretrain"] is not None:
            model.pretrain(**settings["pretrain"])
        model.learn(steps, callback=evaluation)
    model.save(folder / "model.zip")
    return {
        "returns": [point.mean_reward for point in evaluation.points],
        "metrics": getattr(model, "_metrics", {}),
        "device": str(model.device),
    }


@contextmanager
def _without_denormals() -> Iterator[None]:
    """
    Numbers below 1e-38 count as 0, in this thread and in those started from it (a cell has one).

    Of the gradients through Cal-QL's log-sum-exp 2 % are that small, and a processor is so slow with them that a
    gradient step offline on pen takes 169 ms with and 66 ms without; SWFP's and clone + SAC's get 2 and 4 % shorter.
    """
    import torch as th

    th.set_flush_denormal(True)
    try:
        yield
    finally:
        th.set_flush_denormal(False)


def prepare(settings: dict[str, Any], seed: int) -> tuple[Callable[[], Any], Any, Any]:
    """
    :param settings: A cell's
    :param seed: Of the training environment
    :return: What makes one environment, the training environment, the demonstrations
    :raises ImportError: if the package that registers the environment is missing
    :raises FileNotFoundError: if the demonstrations are
    """
    import gymnasium as gym
    from gymnasium.wrappers import TransformReward
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_swfp import Demonstrations, load_demonstrations

    if settings["package"] is not None:
        try:
            gym.register_envs(import_module(settings["package"]))
        except ImportError as error:
            raise ImportError(_needs(settings["env"], settings["package"])) from error
    scale, bias = settings["reward"]
    make_env = partial(gym.make, settings["env"])
    demonstrations = load_demonstrations(settings["dataset"], settings["n_demonstrations"])
    demonstrations = Demonstrations(
        [replace(episode, rewards=scale * episode.rewards + bias) for episode in demonstrations], demonstrations.source
    )
    # The evaluation's environments keep the task's own rewards
    env = make_vec_env(lambda: TransformReward(make_env(), lambda r: scale * float(r) + bias), n_envs=1, seed=seed)
    return make_env, env, demonstrations


def _make_model(settings: dict[str, Any], env: Any, demonstrations: Any, seed: int) -> Any:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

    from sb3_swfp import DemonstrationReplayBuffer

    arguments = dict(settings["arguments"])
    cls = named(settings["algorithm"])
    if issubclass(cls, OnPolicyAlgorithm):
        arguments["demonstrations"] = demonstrations
    else:
        arguments["replay_buffer_kwargs"] = {"demonstrations": demonstrations} | arguments.get(
            "replay_buffer_kwargs", {}
        )
        if arguments.get("replay_buffer_class") == "DemonstrationReplayBuffer":
            arguments["replay_buffer_class"] = DemonstrationReplayBuffer
    return cls(settings["policy"], env, seed=seed, **arguments)


def curve(folder: Path) -> Curve:
    """
    :param folder: Folder of a cell
    :return: Success so far
    """
    from sb3_swfp.callbacks import read_history

    try:
        return [(point.timesteps, point.success_rate) for point in read_history(folder / _HISTORY)]
    except FileNotFoundError:
        return []
