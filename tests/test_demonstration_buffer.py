"""The replay buffer with demonstrations: shares, n-step returns, hindsight goals, normalisation, saving."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import goal_env, record

from sb3_swfp.demonstrations import DemonstrationReplayBuffer, Demonstrations, Episode, NStepDictReplayBuffer

GAMMA = 0.9
BOX = spaces.Box(-1000, 1000, (2,))
DICT = spaces.Dict({"image": spaces.Box(0, 255, (3, 8, 6), np.uint8), "vector": BOX})
ACTIONS = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([4.0, 1.0], np.float32))
# Demonstrations are told from online data by the sign of the first number of the observation
ONLINE = -1.0


def observe(values: np.ndarray, space: spaces.Space) -> Any:
    """Observations that carry a number each: ``[n]`` to ``[n, *shape]``."""
    vectors = np.stack([values, values], axis=-1).astype(np.float32)
    if not isinstance(space, spaces.Dict):
        return vectors
    images = np.broadcast_to(np.abs(values)[:, None, None, None] % 256, (len(values), 3, 8, 6)).astype(np.uint8)
    return {"image": images, "vector": vectors}


def make_demonstrations(*lengths: int, space: spaces.Space = BOX, ending: str = "terminated") -> Demonstrations:
    """Episode e, step t is numbered 100 (e + 1) + t; the reward is the step's number."""
    episodes = []
    for index, length in enumerate(lengths):
        numbers = 100.0 * (index + 1) + np.arange(length + 1)
        last = np.arange(length) == length - 1
        episodes.append(
            Episode(
                observations=observe(numbers, space),
                actions=np.tile(np.array([[1.0, 0.25]], np.float32), (length, 1)),
                rewards=numbers[:-1],
                terminations=last & (ending == "terminated"),
                truncations=last & (ending == "truncated"),
            )
        )
    return Demonstrations(episodes)


def make_buffer(space: spaces.Space = BOX, size: int = 100, **kwargs: Any) -> DemonstrationReplayBuffer:
    return DemonstrationReplayBuffer(size, space, ACTIONS, device="cpu", **{"gamma": GAMMA, **kwargs})


def add_online(buffer: ReplayBuffer, n: int, done_every: int = 0, timeout: bool = False, start: int = 0) -> None:
    """Steps numbered -1 - t, with that number as their reward."""
    shape = (buffer.n_envs,)
    for step in range(start, start + n):
        done = bool(done_every) and (step + 1) % done_every == 0
        buffer.add(
            observe(np.full(shape, ONLINE - step), buffer.observation_space),
            observe(np.full(shape, ONLINE - step - 1), buffer.observation_space),
            np.zeros((*shape, 2), np.float32),
            np.full(shape, ONLINE - step, np.float32),
            np.full(shape, done),
            [{"TimeLimit.truncated": done and timeout}] * buffer.n_envs,
        )


def numbers(observations: Any) -> np.ndarray:
    values = observations["vector"] if isinstance(observations, dict) else observations
    return values[:, 0].numpy()


def n_demonstrated(samples: Any) -> int:
    return int((numbers(samples.observations) > 0).sum())


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("space", [BOX, DICT], ids=["box", "dict"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_share_and_shapes(space: spaces.Space, n_steps: int, n_envs: int) -> None:
    demonstrations = make_demonstrations(5, 4, space=space)
    buffer = make_buffer(space, n_steps=n_steps, n_envs=n_envs, demonstrations=demonstrations, demonstration_share=0.25)
    assert n_demonstrated(buffer.sample(16)) == 16
    assert buffer.last_demonstration_share == 1
    assert buffer.size() == 0
    add_online(buffer, 20)
    assert buffer.size() == buffer.pos == 20 and not buffer.full
    samples = buffer.sample(16)
    assert n_demonstrated(samples) == 4
    assert buffer.last_demonstration_share == 0.25
    assert samples.actions.shape == (16, 2)
    assert samples.rewards.shape == samples.dones.shape == (16, 1)
    assert (samples.discounts is None) == (n_steps == 1)
    for value in (samples.actions, samples.rewards, samples.dones, samples.discounts):
        assert value is None or value.dtype == th.float32
    if isinstance(samples.observations, dict):
        assert samples.observations["image"].dtype == th.uint8
        assert samples.next_observations["image"].shape == (16, 3, 8, 6)


@given(share=st.floats(0, 1), batch_size=st.integers(1, 64))
@settings(deadline=None, max_examples=50)
def test_any_share(share: float, batch_size: int) -> None:
    buffer = make_buffer(demonstrations=make_demonstrations(5), demonstration_share=share)
    add_online(buffer, 3)
    samples = buffer.sample(batch_size)
    assert len(samples.actions) == batch_size
    assert n_demonstrated(samples) == round(share * batch_size)
    assert buffer.last_demonstration_share == n_demonstrated(samples) / batch_size


def test_share_can_change() -> None:
    buffer = make_buffer(demonstrations=make_demonstrations(5))
    add_online(buffer, 3)
    for share in (0.0, 0.5, 1.0):
        buffer.demonstration_share = share
        assert n_demonstrated(buffer.sample(8)) == 8 * share


def test_without_demonstrations() -> None:
    buffer = make_buffer()
    assert buffer.demonstrations is None
    with pytest.raises(ValueError, match="neither demonstrations nor online data"):
        buffer.sample(4)
    add_online(buffer, 3)
    assert n_demonstrated(buffer.sample(8)) == 0
    assert buffer.last_demonstration_share == 0


def test_set_demonstrations() -> None:
    buffer = make_buffer()
    add_online(buffer, 3)
    buffer.set_demonstrations(make_demonstrations(5, 5, 5), n_demonstrations=2)
    assert buffer.demonstrations is not None and len(buffer.demonstrations) == 2
    assert n_demonstrated(buffer.sample(8)) == 4
    buffer.set_demonstrations(None)
    assert n_demonstrated(buffer.sample(8)) == 0
    assert buffer.size() == 3


@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize("space", [BOX, DICT], ids=["box", "dict"])
def test_actions_are_scaled_and_every_transition_is_reachable(space: spaces.Space, n_steps: int) -> None:
    buffer = make_buffer(space, n_steps=n_steps, demonstrations=make_demonstrations(3, 1, space=space))
    samples = buffer.sample(500)
    np.testing.assert_allclose(samples.actions.numpy(), np.tile([[0.0, -0.5]], (500, 1)), atol=1e-6)
    assert set(numbers(samples.observations)) == {100, 101, 102, 200}


@pytest.mark.parametrize("handle_timeouts", [True, False])
@pytest.mark.parametrize("ending", ["terminated", "truncated", "cut"])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("space", [BOX, DICT], ids=["box", "dict"])
def test_ends_of_demonstrations(space: spaces.Space, n_steps: int, ending: str, handle_timeouts: bool) -> None:
    """Each sample against its definition: return, discount, next observation and done of its own episode only."""
    lengths = (5, 2)
    demonstrations = make_demonstrations(*lengths, space=space, ending=ending)
    buffer = make_buffer(
        space, n_steps=n_steps, demonstrations=demonstrations, handle_timeout_termination=handle_timeouts
    )
    samples = buffer.sample(300)
    ends = ending == "terminated" or (ending == "truncated" and not handle_timeouts)
    for index, number in enumerate(numbers(samples.observations)):
        episode, step = divmod(int(number), 100)
        taken = min(n_steps, lengths[episode - 1] - step)
        rewards = number + np.arange(taken)
        assert samples.rewards[index].item() == pytest.approx((rewards * GAMMA ** np.arange(taken)).sum(), rel=1e-5)
        assert numbers(samples.next_observations)[index] == number + taken
        assert samples.dones[index].item() == (ends and step + taken == lengths[episode - 1])
        if samples.discounts is not None:
            assert samples.discounts[index].item() == pytest.approx(GAMMA**taken)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("timeout", [True, False])
@pytest.mark.parametrize("n_added", [13, 20, 27, 45])
def test_n_step_of_dictionaries_agrees_with_sb3(n_envs: int, timeout: bool, n_added: int) -> None:
    """Same storage, same random numbers, arrays in place of dictionaries: the same samples as SB3's own buffer."""
    ours = NStepDictReplayBuffer(20 * n_envs, DICT, ACTIONS, "cpu", n_envs, n_steps=4, gamma=GAMMA)
    theirs = NStepReplayBuffer(20 * n_envs, BOX, ACTIONS, "cpu", n_envs, n_steps=4, gamma=GAMMA)
    for buffer in (ours, theirs):
        add_online(buffer, n_added, done_every=6, timeout=timeout)
    before = ours.timeouts.copy()
    samples = []
    for buffer in (ours, theirs):
        np.random.seed(0)
        samples.append(buffer.sample(200))
    np.testing.assert_array_equal(numbers(samples[0].observations), numbers(samples[1].observations))
    np.testing.assert_array_equal(numbers(samples[0].next_observations), numbers(samples[1].next_observations))
    for name in ("rewards", "dones", "discounts", "actions"):
        np.testing.assert_allclose(getattr(samples[0], name), getattr(samples[1], name), rtol=1e-6)
    np.testing.assert_array_equal(ours.timeouts, before)


@pytest.mark.parametrize("space", [BOX, DICT], ids=["box", "dict"])
def test_truncated_trajectory_ends_n_step_returns(space: spaces.Space) -> None:
    """After loading, the environment starts anew, so what was open must not be joined to what follows."""
    buffer = make_buffer(space, n_steps=5)
    buffer.truncate_last_trajectory()
    add_online(buffer, 4)
    buffer.truncate_last_trajectory()
    add_online(buffer, 4, start=50)
    samples = buffer.sample(200)
    first = numbers(samples.observations) > -10
    assert first.any() and (numbers(samples.next_observations)[first] == -5).all()
    assert (samples.dones == 0).all()


@pytest.mark.parametrize("kwargs", [{}, {"n_steps": 3}])
@pytest.mark.parametrize("space", [BOX, DICT], ids=["box", "dict"])
def test_normalises_both_parts_alike(space: spaces.Space, kwargs: dict[str, Any]) -> None:
    class Numbers(gym.Env):
        observation_space, action_space = space, ACTIONS

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            observation = observe(np.zeros(1), space)
            return ({k: v[0] for k, v in observation.items()} if isinstance(observation, dict) else observation[0]), {}

        def step(self, action: np.ndarray) -> Any:
            return *self.reset()[:1], 0.0, False, False, {}

    keys = ["vector"] if isinstance(space, spaces.Dict) else None
    env = VecNormalize(DummyVecEnv([Numbers]), norm_obs_keys=keys, clip_obs=1e9, clip_reward=1e9)
    statistics = env.obs_rms["vector"] if isinstance(env.obs_rms, dict) else env.obs_rms
    statistics.mean, statistics.var, env.ret_rms.var = np.full(2, 10.0), np.full(2, 4.0), np.array(25.0)
    buffer = make_buffer(space, demonstrations=make_demonstrations(6, space=space), **kwargs)
    add_online(buffer, 6)
    np.random.seed(0)
    raw = buffer.sample(64)
    np.random.seed(0)
    normalised = buffer.sample(64, env=env)
    for name in ("observations", "next_observations"):
        expected = (numbers(getattr(raw, name)) - 10) / 2
        np.testing.assert_allclose(numbers(getattr(normalised, name)), expected, rtol=1e-4)
    np.testing.assert_allclose(normalised.rewards, raw.rewards / 5, rtol=1e-4)
    np.testing.assert_array_equal(normalised.actions, raw.actions)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_pickle_reset_and_device(n_steps: int) -> None:
    buffer = make_buffer(size=10, n_steps=n_steps, demonstrations=make_demonstrations(5, 4))
    add_online(buffer, 14)
    assert buffer.full and buffer.pos == 4 and buffer.size() == buffer.buffer_size == 10
    copy = pickle.loads(pickle.dumps(buffer))
    assert copy.demonstrations.n_transitions == 9 and copy.pos == 4 and copy.full
    np.random.seed(1)
    before = buffer.sample(32)
    np.random.seed(1)
    th.testing.assert_close(copy.sample(32), before)
    copy.device = th.device("meta")
    assert all(value is None or value.device.type == "meta" for value in copy.sample(8))
    buffer.reset()
    assert buffer.size() == 0 and not buffer.full
    assert n_demonstrated(buffer.sample(8)) == 8


def test_state_of_the_online_part_shows_through() -> None:
    """SB3 reaches for these when ``learn`` starts with ``optimize_memory_usage=True``."""
    buffer = make_buffer(
        size=10, optimize_memory_usage=True, handle_timeout_termination=False, demonstrations=make_demonstrations(3)
    )
    add_online(buffer, 12)
    assert buffer.pos == 2 and buffer.full
    buffer.dones[(buffer.pos - 1) % buffer.buffer_size] = True
    assert buffer._online.dones[1, 0] == 1
    buffer.pos, buffer.full = 5, False
    assert buffer._online.pos == buffer.size() == 5
    assert n_demonstrated(buffer.sample(8)) == 4
    with pytest.raises(AttributeError, match="nonsense"):
        buffer.nonsense  # noqa: B018


def test_storage_is_allocated_once() -> None:
    buffer = make_buffer(demonstrations=make_demonstrations(3))
    assert "observations" not in vars(buffer)
    assert buffer.observations is buffer._online.observations


class CountingBuffer(ReplayBuffer):
    """A class with bookkeeping of its own, which must see every transition."""

    def __init__(self, *args: Any, first: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_added = first

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.n_added += 1
        super().add(*args, **kwargs)


def test_own_buffer_class() -> None:
    demonstrations = make_demonstrations(5, 3, ending="truncated")
    buffer = make_buffer(
        demonstrations=demonstrations, online_buffer_class=CountingBuffer, online_buffer_kwargs={"first": 100}
    )
    add_online(buffer, 2)
    assert isinstance(buffer._expert, CountingBuffer)
    assert (buffer.n_added, buffer._expert.n_added) == (102, 108)
    reference = make_buffer(demonstrations=demonstrations)._expert
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(buffer._expert, name), getattr(reference, name))


@pytest.mark.parametrize(
    ("space", "n_steps", "requested", "expected"),
    [
        (BOX, 1, None, ReplayBuffer),
        (BOX, 1, "stable_baselines3.common.buffers.ReplayBuffer", ReplayBuffer),
        (BOX, 3, None, NStepReplayBuffer),
        (BOX, 3, ReplayBuffer, NStepReplayBuffer),
        (DICT, 1, None, DictReplayBuffer),
        (DICT, 3, DictReplayBuffer, NStepDictReplayBuffer),
        (DICT, 3, "sb3_swfp.demonstrations.NStepDictReplayBuffer", NStepDictReplayBuffer),
    ],
)
def test_class_of_the_parts(space: spaces.Space, n_steps: int, requested: Any, expected: type) -> None:
    buffer = make_buffer(space, n_steps=n_steps, online_buffer_class=requested)
    assert type(buffer._online) is expected
    assert getattr(buffer._online, "n_steps", 1) == n_steps


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"demonstration_share": 1.1}, "demonstration_share must be between 0 and 1, not 1.1"),
        ({"demonstration_share": -0.1}, "demonstration_share"),
        ({"demonstration_share": float("nan")}, "demonstration_share"),
        ({"n_steps": 0}, "n_steps must be"),
        ({"n_steps": 1.5}, "n_steps must be"),
        ({"n_demonstrations": 2}, "without demonstrations"),
        ({"demonstrations": make_demonstrations(3), "n_demonstrations": 2}, "1 to 1"),
        ({"demonstrations": make_demonstrations(3, space=DICT)}, "dictionary with keys"),
        ({"online_buffer_class": "nowhere.Buffer"}, "no class 'nowhere.Buffer'"),
        ({"online_buffer_class": "HerReplayBuffer"}, "dotted name"),
        ({"online_buffer_class": dict}, "derived from SB3's ReplayBuffer"),
        ({"online_buffer_class": DemonstrationReplayBuffer}, "derived from SB3's ReplayBuffer"),
        ({"online_buffer_class": HerReplayBuffer}, "does not fit the observation space"),
        ({"online_buffer_class": HerReplayBuffer, "space": DICT}, "achieved_goal"),
        ({"online_buffer_class": CountingBuffer, "n_steps": 3}, "CountingBuffer has no n-step returns"),
        ({"online_buffer_kwargs": {"device": "cpu"}}, r"must not set \['device'\]"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_buffer(**kwargs)


def test_bad_batch_size() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_buffer(demonstrations=make_demonstrations(3)).sample(0)


def goal_demonstrations(n: int) -> Demonstrations:
    """Random ones, whose episodes end in different states."""
    env = goal_env()
    env.action_space.seed(0)
    return record(env, n, lambda _: env.action_space.sample())


def test_hindsight() -> None:
    """Both parts relabel goals; online data counts once an episode is finished; saving leaves the environment out."""
    env = DummyVecEnv([goal_env])
    buffer = DemonstrationReplayBuffer(
        100,
        env.observation_space,
        env.action_space,
        device="cpu",
        demonstrations=goal_demonstrations(5),
        online_buffer_class="stable_baselines3.HerReplayBuffer",
        online_buffer_kwargs={"n_sampled_goal": 3, "goal_selection_strategy": "final"},
        env=env,
    )
    assert buffer.demonstrations is not None
    lengths = [len(episode) for episode in buffer.demonstrations]
    samples = buffer.sample(64)
    # Three of four goals are the last one achieved in the same episode: the first samples are the real ones
    finals = {tuple(episode.observations["achieved_goal"][-1]) for episode in buffer.demonstrations}
    assert {tuple(goal.tolist()) for goal in samples.observations["desired_goal"][16:]} <= finals  # type: ignore[index]
    assert isinstance(buffer._expert, HerReplayBuffer)
    np.testing.assert_array_equal(buffer._expert.ep_length[:, 0], np.repeat(lengths, lengths))

    observation = env.reset()
    for step in range(3):
        action = np.zeros((1, 4), np.float32)
        buffer.add(observation, observation, action, np.zeros(1), np.array([step == 2]), [{}])
        buffer.sample(8)
        assert buffer.last_demonstration_share == (0.5 if step == 2 else 1)

    copy = pickle.loads(pickle.dumps(buffer))
    assert copy._online.env is None and copy._expert.env is None
    copy.set_env(env)
    copy.set_env(env)
    copy.sample(8)
    copy.set_demonstrations(goal_demonstrations(2))
    copy.sample(8)
    observation = env.reset()
    copy.add(observation, observation, action, np.zeros(1), np.array([False]), [{}])
    with pytest.warns(UserWarning, match="will be truncated"):
        copy.truncate_last_trajectory()
    assert copy.dones[3, 0] == 1
    copy.reset()
    copy.sample(8)
    assert copy.last_demonstration_share == 1


def test_hindsight_has_no_n_step_returns() -> None:
    env = DummyVecEnv([goal_env])
    with pytest.raises(ValueError, match="HerReplayBuffer has no n-step returns: set n_steps=1"):
        DemonstrationReplayBuffer(
            100, env.observation_space, env.action_space, n_steps=3, online_buffer_class=HerReplayBuffer, env=env
        )
