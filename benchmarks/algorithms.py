"""
The algorithms that fine-tune from demonstrations, each with matched and with published settings.

*Matched*: the critic, the actor's size, multi-step returns, batches and number of updates that SWFP has; Cal-QL's
critics are fewer (below). The share of demonstrations in a batch is each algorithm's own.
*Published* (``<name>-published``): the authors' own, which are the classes' defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

#: What an algorithm's arguments may override of a dictionary argument, key by key
_MERGED = ("policy_kwargs", "replay_buffer_kwargs")


@dataclass(frozen=True)
class Algorithm:
    """
    :param path: Module and class, "sb3_swfp.swfp.SWFP"
    :param policy: Name of the policy
    :param arguments: Its arguments, as JSON can hold them
    :param pretrain: Arguments of its ``pretrain``; ``None`` where it has none
    :param matched: Whether a task's matched arguments are added: not to published settings, which are the classes'
        defaults, nor to DPPO's, whose updates are of another kind
    """

    path: str
    policy: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pretrain: Mapping[str, Any] | None = None
    matched: bool = True

    @property
    def module(self) -> str:
        """Name of the module."""
        return self.path.rpartition(".")[0]

    def with_arguments(self, **arguments: Any) -> Algorithm:
        """
        :param arguments: Arguments to add or replace; dictionaries are merged
        :return: The same algorithm with these
        """
        merged = merge(self.arguments, arguments)
        return Algorithm(self.path, self.policy, merged, self.pretrain, self.matched)


def named(path: str) -> Any:
    """
    :param path: Module and name, "sb3_swfp.swfp.SWFP"
    :return: The class or function of that name
    """
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param first: Arguments
    :param second: Arguments that go before them
    :return: Both, ``policy_kwargs`` and ``replay_buffer_kwargs`` key by key
    """
    nested = {key: {**first.get(key, {}), **second.get(key, {})} for key in _MERGED if key in first or key in second}
    return {**first, **second, **nested}


#: One critic update a step; the actor follows every second one
_UPDATES = dict(batch_size=256, gamma=0.99, n_steps=10, gradient_steps=1, policy_delay=2)
_CRITIC = dict(net_arch=[256, 256], n_critics=5)
_GAUSSIAN = dict(_UPDATES, critic_scale="auto", policy_kwargs=_CRITIC)
_FLOW = dict(
    _UPDATES,
    ent_coef=0.0,
    policy_kwargs=_CRITIC,
    replay_buffer_class="DemonstrationReplayBuffer",
)
_CLONING = dict(gradient_steps=3_000)

ALGORITHMS: Mapping[str, Algorithm] = {
    "swfp": Algorithm("sb3_swfp.swfp.SWFP", "FlowPolicy", _FLOW, _CLONING),
    "swfp_kl": Algorithm("sb3_swfp.baselines.swfp_kl.SWFPKL", "FlowPolicy", _FLOW, _CLONING),
    "rlpd": Algorithm("sb3_swfp.baselines.rlpd.RLPD", "MlpPolicy", {**_GAUSSIAN, "learning_starts": 1_000}),
    "rlpd-published": Algorithm("sb3_swfp.baselines.rlpd.RLPD", "MlpPolicy", matched=False),
    # Its regulariser makes it slow: hence two critics, as published, and four actions of each kind instead of ten. Its
    # actor has no clone to start from, only the offline phase, so it learns at the others' rate in it
    "calql": Algorithm(
        "sb3_swfp.baselines.calql.CalQL",
        "MlpPolicy",
        {
            **_GAUSSIAN,
            "policy_kwargs": {**_CRITIC, "n_critics": 2, "critic_layer_norm": True},
            "cql_n_actions": 4,
            "actor_learning_rate": 3e-4,
        },
        dict(gradient_steps=10_000),
    ),
    "calql-published": Algorithm(
        "sb3_swfp.baselines.calql.CalQL", "MlpPolicy", {}, dict(gradient_steps=20_000), matched=False
    ),
    "ibrl": Algorithm(
        "sb3_swfp.baselines.ibrl.IBRL",
        "MlpPolicy",
        {
            **_GAUSSIAN,
            "learning_starts": 2_000,
            "learning_rate": 3e-4,
            # Dropout takes half of its actor away: twice the width for the same
            "policy_kwargs": {**_CRITIC, "net_arch": {"pi": [512, 512], "qf": [256, 256]}},
            "tau": 0.005,
            "train_freq": 1,
            "replay_buffer_class": "DemonstrationReplayBuffer",
        },
        _CLONING,
    ),
    "ibrl-published": Algorithm("sb3_swfp.baselines.ibrl.IBRL", "MlpPolicy", {}, _CLONING, matched=False),
    # On-policy: its own critic (a value function) and batches, the same clone; a suite's task may set its noise
    "dppo": Algorithm("sb3_swfp.baselines.dppo.DPPO", "FlowPolicy", {}, _CLONING, matched=False),
    "dppo-published": Algorithm("sb3_swfp.baselines.dppo.DPPO", "FlowPolicy", {}, _CLONING, matched=False),
    # As the other Gaussian actors here: no entropy in the target, and the critics' mean to follow
    "clone": Algorithm(
        "sb3_swfp.baselines.clone_sac.CloneSAC",
        "MlpPolicy",
        {**_GAUSSIAN, "backup_entropy": False, "pessimistic_actor": False},
        _CLONING,
    ),
    "clone-published": Algorithm("sb3_swfp.baselines.clone_sac.CloneSAC", "MlpPolicy", {}, _CLONING, matched=False),
}

#: All whose policy is a clone's flow, or has one beside it, with twice the default's blocks
TEN_BLOCKS: Mapping[str, Algorithm] = {
    f"{name}-10-blocks": ALGORITHMS[name].with_arguments(policy_kwargs=dict(n_blocks=10))
    for name in ("swfp", "ibrl", "dppo")
}
