"""
Studies of SWFP's parts, on the demo's task and with one particle an action: where the critic picks among eight, success
was 86 % even if no block moved (seed 0, docs/experiments-clones.md), so what the blocks learn could hardly be seen.
With one particle nothing is picked in the critic's target either, and the critic has no picks to be tried by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.algorithms import ALGORITHMS, Algorithm, merge
from benchmarks.suites import fetch
from benchmarks.suites.base import Suite
from benchmarks.suites.finetuning import Task, finetuning_suite

TASKS: Mapping[str, Task] = {
    name: replace(task, arguments=merge(task.arguments, dict(policy_kwargs=dict(n_candidates=1))))
    for name, task in fetch.TASKS.items()
}
_SWFP: Algorithm = ALGORITHMS["swfp"]
_KL: Algorithm = ALGORITHMS["swfp_kl"]

#: KL steps beside MPO's 0.1, all falling as SWFP's movement does. 0.001 moves a Gaussian in the arm's four dimensions
#: about as far as SWFP moves a clone: 4 * 0.02^2 / 2
_KL_STEPS = (0.001, 0.005, 0.02)


def _blocks(n: int) -> Algorithm:
    return _SWFP.with_arguments(policy_kwargs=dict(n_blocks=n))


SUITES: Mapping[str, Suite] = {
    "blocks": finetuning_suite(
        "number of flow blocks",
        TASKS,
        {"swfp": _SWFP} | {f"swfp-{n}-blocks": _blocks(n) for n in (1, 3, 10)},
    ),
    "order": finetuning_suite(
        "blocks in parallel on stale particles, or strictly one after the other",
        TASKS,
        {"swfp": _SWFP, "swfp-sequential": _SWFP.with_arguments(block_training="sequential")},
    ),
    "trust-region": finetuning_suite(
        "Wasserstein-2 (paired, entropic) or Kullback-Leibler as the trust region",
        TASKS,
        {"swfp": _SWFP, "swfp-sinkhorn": _SWFP.with_arguments(w2="sinkhorn"), "swfp_kl": _KL}
        | {f"swfp_kl-{step}": _KL.with_arguments(kl_step=f"lin_{step}") for step in _KL_STEPS},
    ),
}
