"""Acting: numpy does what torch does, sees every change of the networks, and leaves to torch what it can't do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_swfp.acting import NUMPY_MAX_PARTICLES, act, state_noise
from sb3_swfp.policies import FlowActorCriticPolicy


def make_policy(
    obs_dim: int = 5, action_dim: int = 4, ripe: bool = True, space: spaces.Space | None = None, **kwargs: Any
) -> FlowActorCriticPolicy:
    """A policy with random weights everywhere: a new cascade is the identity, which would hide most mistakes."""
    space = spaces.Box(-np.inf, np.inf, (obs_dim,)) if space is None else space
    sizes: dict[str, Any] = dict(n_blocks=3, block_net_arch=[16, 24], net_arch=[32, 48])
    policy = FlowActorCriticPolicy(space, spaces.Box(-1.0, 1.0, (action_dim,)), lambda _: 1e-3, **(sizes | kwargs))
    generator = th.Generator().manual_seed(0)
    trained = (policy.actor_average, policy.critic, policy.actor)
    for parameter in (parameter for network in trained for parameter in network.parameters()):
        parameter.data += 0.3 * th.randn(parameter.shape, generator=generator)
    policy.critic.scale.fill_(3.0)
    policy.critic_target.load_state_dict(policy.critic.state_dict())
    policy.temperature.fill_(0.5)
    policy.critic_is_ripe.fill_(ripe)
    policy.set_training_mode(False)
    return policy


def both(policy: FlowActorCriticPolicy, observation: th.Tensor, deterministic: bool) -> tuple[th.Tensor, th.Tensor]:
    """:return: numpy's actions and torch's, from the same random numbers"""
    with th.no_grad():
        th.manual_seed(1)
        fast = policy._numpy_acting.act(policy, observation, deterministic)
        th.manual_seed(1)
        slow = act(policy, observation, deterministic)
    assert fast is not None, "numpy didn't act"
    return fast, slow


def draw_observations(n: int, obs_dim: int = 5) -> th.Tensor:
    return th.randn(n, obs_dim, generator=th.Generator().manual_seed(2))


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("n_candidates", [1, 8])
@pytest.mark.parametrize("ripe", [True, False])
@pytest.mark.parametrize("action_dim", [1, 4, 17])
def test_numpy_agrees_with_torch(action_dim: int, ripe: bool, n_candidates: int, batch: int) -> None:
    policy = make_policy(action_dim=action_dim, ripe=ripe, n_candidates=n_candidates)
    for deterministic in (True, False):
        fast, slow = both(policy, draw_observations(batch), deterministic)
        assert fast.shape == (batch, action_dim) and fast.dtype == slow.dtype
        th.testing.assert_close(fast, slow, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(euler_steps=3),
        dict(n_blocks=1, block_net_arch=[8]),
        dict(critic_layer_norm=False),
        dict(n_critics=5, net_arch=[32]),
        dict(n_critics=1, net_arch=dict(pi=[], qf=[16, 16, 16])),
        dict(share_features_extractor=True),
    ],
)
def test_numpy_agrees_with_torch_for_every_architecture(kwargs: dict[str, Any]) -> None:
    policy = make_policy(**kwargs)
    for deterministic in (True, False):
        th.testing.assert_close(*both(policy, draw_observations(3), deterministic), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("ripe", [True, False])
def test_deterministic_action_is_the_same_alone_and_in_a_batch(ripe: bool) -> None:
    policy, observations = make_policy(ripe=ripe), draw_observations(40).numpy()  # 40 x 8 particles are torch's
    assert len(observations) * policy.n_candidates > NUMPY_MAX_PARTICLES
    alone = np.stack([policy.predict(row, deterministic=True)[0] for row in observations])
    few = np.concatenate([policy.predict(rows, deterministic=True)[0] for rows in np.split(observations, 8)])
    many, _ = policy.predict(observations, deterministic=True)
    np.testing.assert_allclose(few, alone, atol=1e-5)
    np.testing.assert_allclose(many, alone, atol=1e-5)


def test_every_change_of_the_networks_is_seen() -> None:
    policy, other, observation = make_policy(), make_policy(), draw_observations(1)
    for parameter in other.parameters():
        parameter.data *= 1.1

    def changed(before: th.Tensor) -> th.Tensor:
        after, slow = both(policy, observation, True)
        th.testing.assert_close(after, slow, rtol=0.0, atol=1e-5)
        assert not th.allclose(before, after, atol=1e-4)
        return after

    action = both(policy, observation, True)[0]
    # As an optimiser step, as a loaded state, as replaced parameters, as replaced memory, as a replaced network
    for parameter in policy.actor_average.parameters():
        parameter.data.add_(0.1)
    action = changed(action)
    policy.load_state_dict(other.state_dict())
    action = changed(action)
    state = {name: value * 1.2 if value.is_floating_point() else value for name, value in other.state_dict().items()}
    policy.load_state_dict(state, assign=True)
    action = changed(action)
    policy.actor_average.cascade.biases[-1].data = policy.actor_average.cascade.biases[-1].data + 0.3
    action = changed(action)
    policy.actor_average = make_policy(n_blocks=2).actor_average
    average = changed(action)
    # As another flow's turn to act, and back
    policy.actor_average, kept = policy.actor, policy.actor_average
    action = changed(average)
    for parameter in policy.actor.parameters():
        parameter.data.add_(0.1)
    changed(action)
    policy.actor_average = kept
    th.testing.assert_close(both(policy, observation, True)[0], average)


def test_copies_act_with_their_own_networks(tmp_path: Path) -> None:
    policy, observation = make_policy(), draw_observations(1)
    before = both(policy, observation, True)[0]
    twin = copy.deepcopy(policy)
    th.testing.assert_close(both(twin, observation, True)[0], before)
    for parameter in policy.actor_average.parameters():
        parameter.data.zero_()
    th.testing.assert_close(both(twin, observation, True)[0], before)
    twin.save(str(tmp_path / "policy.pt"))
    loaded = FlowActorCriticPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    th.testing.assert_close(both(loaded, observation, True)[0], before)


def test_torch_acts_where_numpy_can_not() -> None:
    policy, observation = make_policy(), draw_observations(1)
    numpy_acting = policy._numpy_acting
    assert numpy_acting.act(policy, observation, True) is None, "gradients are wanted"
    with th.no_grad():
        assert numpy_acting.act(policy, observation, True) is not None
        assert numpy_acting.act(policy, draw_observations(NUMPY_MAX_PARTICLES), True) is None
        image_space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
        both_spaces = spaces.Dict({"image": image_space, "vector": spaces.Box(-1.0, 1.0, (2,))})
        for space in (image_space, spaces.Discrete(3), both_spaces):
            other = make_policy(space=space)
            sample: Any = space.sample()
            assert other._numpy_acting.act(other, other.obs_to_tensor(sample)[0], True) is None
            assert other.predict(sample, deterministic=True)[0].shape == (4,)
        policy.double()
        assert numpy_acting.act(policy, observation, True) is None


def test_fresh_noise_comes_from_torch_and_the_seed_reproduces_it() -> None:
    policy, observation = make_policy(), draw_observations(1).numpy()[0]
    actions = []
    for seed in (0, 0, 1):
        th.manual_seed(seed)
        actions.append([policy.predict(observation)[0] for _ in range(5)])
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.allclose(actions[0], actions[2])


def test_exploration_follows_the_softmax_of_q() -> None:
    # One action dimension and a huge or a tiny temperature: the candidates alone, or the best of them
    policy, observation = make_policy(action_dim=1), draw_observations(1).numpy()[0]
    spread = {}
    for temperature in (1e-6, 1e6):
        policy.temperature.fill_(temperature)
        th.manual_seed(0)
        actions = th.as_tensor(np.stack([policy.predict(observation)[0] for _ in range(300)]))
        with th.no_grad():
            features = th.as_tensor(observation)[None].expand(len(actions), -1)
            spread[temperature] = policy.critic.q_values(features, actions).mean(dim=0).mean().item()
    assert spread[1e-6] > spread[1e6]


@pytest.mark.parametrize("ripe", [True, False])
def test_observations_of_any_number_type_and_memory_layout(ripe: bool) -> None:
    policy, observations = make_policy(ripe=ripe), draw_observations(4).numpy()
    expected, _ = policy.predict(observations, deterministic=True)
    for same in (observations.astype(np.float64), np.asfortranarray(observations), observations.tolist()):
        np.testing.assert_allclose(policy.predict(same, deterministic=True)[0], expected, atol=1e-5)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(policy.predict(observations, deterministic=True)[0], expected)


def test_predict_restores_evaluation_mode_and_leaves_the_observation_alone() -> None:
    policy, observation = make_policy(), draw_observations(1).numpy()[0]
    before = observation.copy()
    policy.set_training_mode(True)
    policy.predict(observation)
    assert not any(module.training for module in policy.modules())
    np.testing.assert_array_equal(observation, before)


def test_state_noise_is_standard_normal_and_a_function_of_the_state() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    noise = state_noise(features, 8, 3)
    assert noise.shape == (16000, 3) and noise.dtype == np.float32
    np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=0.04)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(3), atol=0.04)
    # Particles of one state, and states next to each other, have nothing to do with one another
    by_state = noise.reshape(2000, 24)
    assert np.abs(np.corrcoef(by_state.T) - np.eye(24)).max() < 0.12
    np.testing.assert_array_equal(state_noise(features[7:8], 8, 3), by_state[7].reshape(8, 3))
    features[0, 0] = np.nextafter(features[0, 0], np.float32(np.inf))
    assert not np.allclose(state_noise(features[:1], 8, 3), by_state[0].reshape(8, 3))
    zero = np.zeros((1, 1), np.float32)
    np.testing.assert_array_equal(state_noise(zero, 2, 2), state_noise(-zero, 2, 2))


@pytest.mark.parametrize("ripe", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_is_refused(ripe: bool, grad: bool) -> None:
    """A trace would keep the noise of the state it was traced with, whatever state it then sees."""
    policy = make_policy(ripe=ripe)

    class Exported(th.nn.Module):
        def forward(self, observation: th.Tensor) -> th.Tensor:
            return policy(observation, deterministic=True)

    with th.set_grad_enabled(grad), pytest.raises(RuntimeError, match="can't be traced"):
        th.jit.trace(Exported(), th.zeros(1, 5))
