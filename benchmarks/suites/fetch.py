"""The demo's task: FetchPickAndPlace with hindsight goals, from the scripted teacher of ``examples/``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.algorithms import TEN_BLOCKS, Algorithm
from benchmarks.suites.base import Suite
from benchmarks.suites.finetuning import Task, finetuning_suite, main_algorithms

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
#: The demo's settings (examples/demo.py), for all that update off-policy
_ARGUMENTS: dict[str, Any] = dict(
    gamma=0.98,
    n_steps=1,
    gradient_steps=2,
    policy_delay=4,
    policy_kwargs=dict(n_critics=2),
    replay_buffer_kwargs=dict(online_buffer_class="stable_baselines3.HerReplayBuffer"),
)
_CLUMSINESS = 0.4
#: A temperature starts at 1, a 457th of the scale of the door's critics. Here that is a ninth, and after 10,000 steps
#: SAC would still be far wider than it is to become (docs/experiments.md#fetch-temperature). Cal-QL starts with
#: the same, and its offline phase cools it besides
_COOL = dict(ent_coef="auto_0.02")
#: Cal-QL's weight is in the rewards' unit too. These span 1, where the authors' and Adroit's span 10: with their weight
#: of 1 it learned nothing in 6,000 steps, with a tenth of it it did (docs/experiments.md#fetch-calql)
_MILD = dict(cql_weight=0.1)


def prepare(settings: dict[str, Any], seed: int) -> tuple[Callable[[], Any], Any, Any]:
    """
    :param settings: A cell's
    :param seed: Of the teacher and of the training environment
    :return: What makes one environment, the training environment (normalised by the demonstrations), the demonstrations
    """
    sys.path.insert(0, str(_EXAMPLES))
    teacher, common = import_module("scripted_fetch"), import_module("common")
    demonstrations = teacher.collect_demonstrations(settings["n_demonstrations"], seed, _CLUMSINESS)
    return teacher.make_env, common.normalized_env(teacher.make_env, demonstrations, seed), demonstrations


TASKS: Mapping[str, Task] = {
    "pick-and-place": Task(
        "FetchPickAndPlace-v4",
        "gymnasium_robotics",
        "scripted",
        50,
        steps=10_000,
        eval_freq=2_000,
        arguments=_ARGUMENTS,
        # Roll-outs as long as it is from one evaluation to the next, and the discount that all have here
        of_algorithm={
            "rlpd": _COOL,
            "clone": _COOL,
            "calql": {**_COOL, **_MILD},
            **dict.fromkeys(("dppo", "dppo-10-blocks"), dict(gamma=0.98, n_steps=2_000, batch_size=200)),
        },
        prepare="benchmarks.suites.fetch.prepare",
    )
}


def _for_dictionaries(algorithms: Mapping[str, Algorithm]) -> dict[str, Algorithm]:
    """The task's observations are dictionaries, which the Gaussian actors' ``MlpPolicy`` refuses."""
    return {
        name: replace(one, policy="MultiInputPolicy") if one.policy == "MlpPolicy" else one
        for name, one in algorithms.items()
    }


def _with_hindsight(algorithms: Mapping[str, Algorithm]) -> dict[str, Algorithm]:
    """Cal-QL in the form that has relabelled goals and calibrates by their returns."""
    path = "sb3_swfp.baselines.calql_hindsight.HindsightCalQL"
    return {name: replace(one, path=path) if name == "calql" else one for name, one in algorithms.items()}


SUITES: Mapping[str, Suite] = {
    "fetch": finetuning_suite(
        "offline to online on the demo's task, with hindsight goals, matched settings",
        TASKS,
        _with_hindsight(_for_dictionaries(main_algorithms("swfp", "rlpd", "calql", "ibrl", "dppo", "clone"))),
    ),
    "fetch-blocks": finetuning_suite(
        "five flow blocks or ten, with the critic's picks, on the demo's task",
        TASKS,
        _for_dictionaries({**main_algorithms("swfp", "ibrl", "dppo"), **TEN_BLOCKS}),
    ),
}
