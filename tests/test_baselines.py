"""What holds for every off-policy baseline: it runs, is saved and loaded, is reproducible, refuses what can't work."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize
from tiny import Mirror, mirror_demonstrations

import sb3_swfp.baselines as baselines
from sb3_swfp import DemonstrationReplayBuffer
from sb3_swfp.base import DemonstrationAlgorithm

SMALL = dict(net_arch=[32, 32])
FLOW = dict(n_blocks=2, block_net_arch=[16])
COMMON: dict[str, Any] = dict(
    learning_starts=20, batch_size=16, buffer_size=500, gradient_steps=1, seed=0, device="cpu"
)
#: Class, its arguments for a run of seconds
OFF_POLICY: dict[str, dict[str, Any]] = {
    "RLPD": dict(policy_delay=2, policy_kwargs=SMALL | dict(n_critics=3)),
    "CloneSAC": dict(policy_kwargs=SMALL),
    "CalQL": dict(cql_n_actions=3, policy_kwargs=SMALL),
    "IBRL": dict(train_freq=1, policy_delay=1, policy_kwargs=SMALL | FLOW | dict(n_critics=3)),
    "SWFPKL": dict(kl_epoch=5, critic_warmup=10, policy_kwargs=SMALL | FLOW),
}
every_baseline = pytest.mark.parametrize("name", OFF_POLICY)
cloning_ones = pytest.mark.parametrize("name", ["CloneSAC", "IBRL", "SWFPKL"])


def make(name: str, env: Any = None, with_demonstrations: bool = True, **kwargs: Any) -> DemonstrationAlgorithm:
    """
    :param name: Name of the class
    :param env: Environment, :class:`Mirror` when omitted
    :param with_demonstrations: Whether its buffer holds some
    :param kwargs: Further arguments
    :return: A small model
    """
    policy = "FlowPolicy" if name == "SWFPKL" else "MlpPolicy"
    if with_demonstrations:
        kwargs.setdefault("replay_buffer_kwargs", dict(demonstrations=mirror_demonstrations()))
        if name == "SWFPKL":
            kwargs["replay_buffer_class"] = DemonstrationReplayBuffer
    arguments = COMMON | OFF_POLICY[name] | kwargs
    return getattr(baselines, name)(policy, Monitor(Mirror()) if env is None else env, **arguments)


def weights(model: Any) -> th.Tensor:
    """:return: all parameters and buffers of the policy in one vector"""
    return th.cat([value.detach().float().flatten() for value in model.policy.state_dict().values()])


@every_baseline
def test_runs_with_callbacks_and_several_environments(name: str) -> None:
    env = make_vec_env(Mirror, n_envs=2, seed=0)
    model = make(name, env)
    evaluation = EvalCallback(make_vec_env(Mirror), eval_freq=20, n_eval_episodes=1, verbose=0)
    before = weights(model)
    model.learn(120, callback=evaluation, progress_bar=False)
    assert model.num_timesteps == 120 and model._n_updates > 0
    assert np.isfinite(evaluation.last_mean_reward)  # it begins with -inf
    assert not th.equal(before, weights(model)) and bool(th.isfinite(weights(model)).all())
    action, _ = model.predict(np.zeros(2, np.float32))
    assert model.action_space.contains(action)


@every_baseline
def test_reproducible(name: str) -> None:
    first, second = (weights(make(name).learn(80)) for _ in range(2))
    assert th.equal(first, second)
    assert not th.equal(first, weights(make(name, seed=1).learn(80)))


@every_baseline
def test_save_and_load(name: str, tmp_path: Path) -> None:
    model = make(name)
    if hasattr(model, "pretrain"):
        model.pretrain(gradient_steps=20)
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=Monitor(Mirror()))
    observations = Mirror().observation_space.sample()[None].repeat(5, axis=0)
    assert np.array_equal(*(each.predict(observations, deterministic=True)[0] for each in (model, loaded)))
    assert th.equal(weights(model), weights(loaded))
    assert getattr(model, "is_pretrained", None) == getattr(loaded, "is_pretrained", None)
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 100 and not th.equal(weights(model), weights(loaded))


@every_baseline
def test_normalised_observations_and_rewards(name: str) -> None:
    env = VecNormalize(make_vec_env(Mirror, seed=0))
    model = make(name, env)
    if hasattr(model, "pretrain"):
        model.pretrain(gradient_steps=20)
    model.learn(60)
    assert bool(th.isfinite(weights(model)).all())


@every_baseline
def test_n_step_returns(name: str) -> None:
    model = make(name, n_steps=4).learn(60)
    assert model._n_updates > 0
    if name != "DPPO":  # whose n_steps is the length of its roll-outs
        discounts = model.replay_buffer.sample(64).discounts
        assert float(discounts.min()) == pytest.approx(model.gamma**4)


@cloning_ones
def test_the_clone_acts_as_demonstrated(name: str) -> None:
    data = mirror_demonstrations(60)
    # Flows of their default size: a clone of two blocks overshoots by a third (docs/algorithm.md, pretraining)
    env, arguments = VecNormalize(make_vec_env(Mirror)), dict(demonstrations=data)
    model = make(name, env, replay_buffer_kwargs=arguments, policy_kwargs=dict(net_arch=[32, 32]))
    model.pretrain(gradient_steps=1500, learning_rate=3e-3)
    normalize = model.get_vec_normalize_env()
    assert normalize is not None
    observations = normalize.normalize_obs(data.observations())
    if isinstance(model, baselines.IBRL):
        tensors = th.as_tensor(observations)
        actions = model.policy.unscale_action(model.policy.cloned_actions(tensors, True).detach().numpy())
    else:
        actions = model.predict(observations, deterministic=True)[0]
    extent = model.action_space.high - model.action_space.low
    assert np.abs((actions - data.actions()) / extent).mean() < 0.05
    # Online it acts from the first step, not at random
    frozen = weights(model)
    model.learn(1)
    assert th.equal(frozen, weights(model))


@every_baseline
def test_impossible_arguments(name: str) -> None:
    for bad in (dict(gamma=1.5), dict(batch_size=0), dict(policy_delay=0), dict(ent_coef="automatic")):
        if name == "IBRL" and "ent_coef" in bad:
            continue
        with pytest.raises(ValueError, match=next(iter(bad))):
            make(name, **bad)
    with pytest.raises(AssertionError, match="Discrete"):
        make(name, "CartPole-v1", with_demonstrations=False)


@pytest.mark.parametrize("name", ["CloneSAC", "IBRL", "CalQL", "SWFPKL"])
def test_cloning_needs_demonstrations(name: str) -> None:
    with pytest.raises(ValueError, match="needs demonstrations"):
        make(name, with_demonstrations=False).pretrain(gradient_steps=1)


def test_all_are_listed_and_none_imports_swfp() -> None:
    folder = Path(baselines.__file__).parent
    for name in baselines.__all__:
        assert getattr(baselines, name).__name__ == name and name in dir(baselines)
    with pytest.raises(AttributeError, match="no attribute 'SAC'"):
        baselines.__getattr__("SAC")
    for path in folder.glob("*.py"):
        imported = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert "sb3_swfp.swfp" not in imported, path
    assert import_module("sb3_swfp.baselines") is sys.modules["sb3_swfp.baselines"]
