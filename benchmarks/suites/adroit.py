"""Adroit hands, from real demonstrations: the main comparison, and the studies of SWFP's parts."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.algorithms import ALGORITHMS, Algorithm
from benchmarks.suites.base import Suite
from benchmarks.suites.finetuning import Task, finetuning_suite, main_algorithms

_PACKAGE = "gymnasium_robotics"

#: A door clone's actions lie 0.03 apart: DPPO's published noise of 0.1 takes a clone from 90 to 84 %, this one does
#: not (docs/experiments.md)
_QUIET = {"dppo": dict(min_sampling_std=0.05, min_logprob_std=0.05)}

#: The environments' rewards are 10 and -0.1. RLPD's authors train on 0 and -1, Cal-QL's on 5 and -5 where success ends
#: the episode; here it does not, and staying there must be worth as little as an end: 0 and -5
_PUBLISHED_REWARDS = {"rlpd-published": (1 / 10.1, -10 / 10.1), "calql-published": (5 / 10.1, -50 / 10.1)}

TASKS: Mapping[str, Task] = {
    "door": Task(
        "AdroitHandDoorSparse-v1",
        _PACKAGE,
        "adroit/door-expert-v0",
        10,
        of_algorithm=_QUIET,
        rewards=_PUBLISHED_REWARDS,
    ),
    # Every goal is another one: two critic updates a step, and as many of the actor as on the door
    "pen": Task(
        "AdroitHandPenSparse-v1",
        _PACKAGE,
        "adroit/pen-expert-v0",
        10,
        arguments=dict(gradient_steps=2, policy_delay=4),
        rewards=_PUBLISHED_REWARDS,
    ),
    "door-human": Task(
        "AdroitHandDoorSparse-v1", _PACKAGE, "adroit/door-human-v0", 25, of_algorithm=_QUIET, rewards=_PUBLISHED_REWARDS
    ),
}
_EXPERT = {name: TASKS[name] for name in ("door", "pen")}
_SWFP: Algorithm = ALGORITHMS["swfp"]


def _blocks(n: int) -> Algorithm:
    return _SWFP.with_arguments(policy_kwargs=dict(n_blocks=n))


#: Step sizes of the study that looks for where the JKO picture breaks, as constants (not steered)
_STEP_SIZES = (0.01, 0.1, 1.0, 10.0)

#: KL steps beside MPO's 0.1, all falling as SWFP's movement does. 0.006 moves a Gaussian in 28 dimensions (the hand) as
#: far as SWFP moves a clone: 28 * 0.02^2 / 2
_KL_STEPS = (0.006, 0.02, 0.05)

SUITES: Mapping[str, Suite] = {
    "adroit": finetuning_suite(
        "offline to online on Adroit hands, matched settings",
        TASKS,
        main_algorithms("swfp", "rlpd", "calql", "ibrl", "dppo", "clone"),
    ),
    "adroit-published": finetuning_suite(
        "offline to online on Adroit hands, each baseline with its published settings",
        TASKS,
        main_algorithms(
            "swfp", "rlpd-published", "calql-published", "ibrl-published", "dppo-published", "clone-published"
        ),
    ),
    "blocks": finetuning_suite(
        "number of flow blocks",
        _EXPERT,
        {"swfp": _SWFP} | {f"swfp-{n}-blocks": _blocks(n) for n in (1, 3, 10)},
    ),
    "order": finetuning_suite(
        "blocks in parallel on stale particles, or strictly one after the other",
        _EXPERT,
        {"swfp": _SWFP, "swfp-sequential": _SWFP.with_arguments(block_training="sequential")},
    ),
    "trust-region": finetuning_suite(
        "Wasserstein-2 (paired, entropic) or Kullback-Leibler as the trust region",
        _EXPERT,
        {"swfp": _SWFP, "swfp-sinkhorn": _SWFP.with_arguments(w2="sinkhorn"), "swfp_kl": ALGORITHMS["swfp_kl"]}
        | {f"swfp_kl-{step}": ALGORITHMS["swfp_kl"].with_arguments(kl_step=f"lin_{step}") for step in _KL_STEPS},
    ),
    "step-size": finetuning_suite(
        "constant JKO step sizes with 1, 5 and 10 blocks",
        {"door": TASKS["door"]},
        {"swfp": _SWFP}
        | {
            f"swfp-{n}-blocks-eta-{eta}": _blocks(n).with_arguments(jko_step_size=eta)
            for n in (1, 5, 10)
            for eta in _STEP_SIZES
        },
    ),
}
