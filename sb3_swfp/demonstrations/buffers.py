"""A replay buffer that keeps demonstrations in every batch, whatever Stable-Baselines3 buffer holds the online data."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_swfp.demonstrations.readers import load_demonstrations
from sb3_swfp.demonstrations.types import Demonstrations, map_observations

Samples = ReplayBufferSamples | DictReplayBufferSamples

_GOAL_KEYS = {"observation", "achieved_goal", "desired_goal"}


class NStepDictReplayBuffer(DictReplayBuffer):
    """
    n-step returns for dictionary observations, as SB3's ``NStepReplayBuffer`` has them for arrays.

    A return stops at the end of its episode, and at the newest transition stored, whose successor is not known yet.

    :param n_steps: number of rewards to add up
    :param gamma: discount factor
    """

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_steps = n_steps
        self.gamma = gamma

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> DictReplayBufferSamples:
        envs = np.random.randint(self.n_envs, size=batch_inds.shape)
        offsets = np.arange(self.n_steps)
        rows = (batch_inds[:, None] + offsets) % self.buffer_size  # [batch, n_steps]
        columns = envs[:, None]

        newest = (self.pos - 1) % self.buffer_size
        stops = (self.dones[rows, columns] > 0) | (self.timeouts[rows, columns] > 0) | (rows == newest)
        stops[:, -1] = True  # the horizon stops every return at the latest
        last = stops.argmax(axis=1)
        # float64 powers keep gamma ** n exact to float32; the samples are float32, as all of SB3's
        weights = np.where(offsets <= last[:, None], self.gamma**offsets, 0.0)
        rewards = self._normalize_reward(self.rewards[rows, columns], env)
        returns = (rewards * weights).sum(axis=1, keepdims=True).astype(np.float32)
        discounts = (self.gamma ** (last[:, None] + 1.0)).astype(np.float32)

        ends = (batch_inds + last) % self.buffer_size
        obs = self._normalize_obs({key: value[batch_inds, envs] for key, value in self.observations.items()}, env)
        next_obs = self._normalize_obs({key: value[ends, envs] for key, value in self.next_observations.items()}, env)
        assert isinstance(obs, dict) and isinstance(next_obs, dict)
        dones = self.dones[ends, envs] * (1 - self.timeouts[ends, envs])
        return DictReplayBufferSamples(
            observations={key: self.to_torch(value) for key, value in obs.items()},
            actions=self.to_torch(self.actions[batch_inds, envs]),
            next_observations={key: self.to_torch(value) for key, value in next_obs.items()},
            dones=self.to_torch(dones[:, None]),
            rewards=self.to_torch(returns),
            discounts=self.to_torch(discounts),
        )


class DemonstrationReplayBuffer(ReplayBuffer):
    """
    Replay buffer that mixes demonstrations into every batch at a set share.

    It holds two buffers of one class: one for online data, which SB3 fills and which may wrap around, and one for the
    demonstrations, which stays. So whatever the class can do (n-step returns, hindsight goals, dictionaries, images)
    both parts do alike. Actions are stored scaled to [-1, 1] and observations unnormalised, as SB3 does; a
    ``VecNormalize`` normalises both parts at sampling time.

    Everything can be set from a YAML file: the demonstrations by id or path, the class by its dotted name.

    :param buffer_size: number of online transitions to keep; demonstrations come on top
    :param observation_space: observation space
    :param action_space: action space
    :param device: torch device of the samples
    :param n_envs: number of parallel environments that the online data comes from
    :param optimize_memory_usage: as in SB3, for the online part
    :param handle_timeout_termination: as in SB3: whether time limits are told apart from terminations, in both parts
    :param demonstrations: what :func:`load_demonstrations` takes; ``None`` for a buffer without any
    :param n_demonstrations: use only the first so many episodes
    :param demonstration_share: share of each batch that demonstrations make up, in [0, 1]
    :param n_steps: length of n-step returns
    :param gamma: discount factor, for n-step returns
    :param online_buffer_class: class of both parts, such as ``HerReplayBuffer``, or its dotted name
        (``"stable_baselines3.HerReplayBuffer"``); by default what observation space and ``n_steps`` ask for
    :param online_buffer_kwargs: further arguments of that class
    :param env: the training environment, which ``HerReplayBuffer`` computes rewards with
    :raises ValueError: if arguments contradict each other or the demonstrations do not fit the spaces
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        demonstrations: Any = None,
        n_demonstrations: int | None = None,
        demonstration_share: float = 0.5,
        n_steps: int = 1,
        gamma: float = 0.99,
        online_buffer_class: type[ReplayBuffer] | str | None = None,
        online_buffer_kwargs: dict[str, Any] | None = None,
        env: VecEnv | None = None,
    ) -> None:
        if demonstrations is None and n_demonstrations is not None:
            raise ValueError(f"n_demonstrations={n_demonstrations} was given without demonstrations")
        self.demonstration_share = demonstration_share
        self.handle_timeout_termination = handle_timeout_termination
        self.optimize_memory_usage = optimize_memory_usage
        self.n_steps = n_steps
        self.gamma = gamma
        self._part_class = _resolve_class(online_buffer_class, observation_space, n_steps)
        self._part_kwargs = dict(online_buffer_kwargs or {})
        if issubclass(self._part_class, (NStepReplayBuffer, NStepDictReplayBuffer)):
            self._part_kwargs = {**self._part_kwargs, "n_steps": n_steps, "gamma": gamma}
        self._demonstrations: Demonstrations | None = None
        self._demonstration_arguments: dict[str, Any] = {}
        self._expert: ReplayBuffer | None = None
        self.last_demonstration_share = 0.0
        self._online = self._make_part(
            buffer_size,
            observation_space,
            action_space,
            env,
            device=device,
            n_envs=n_envs,
            optimize_memory_usage=optimize_memory_usage,
            handle_timeout_termination=handle_timeout_termination,
        )
        # ReplayBuffer.__init__ would allocate the storage a second time
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = self._online.buffer_size
        self.set_demonstrations(demonstrations, n_demonstrations)

    def _make_part(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        env: VecEnv | None,
        **kwargs: Any,
    ) -> ReplayBuffer:
        if issubclass(self._part_class, HerReplayBuffer):
            kwargs["env"] = env
        clash = sorted(kwargs.keys() & self._part_kwargs.keys())
        if clash:
            raise ValueError(f"online_buffer_kwargs must not set {clash}: give them to the replay buffer itself")
        return self._part_class(buffer_size, observation_space, action_space, **kwargs, **self._part_kwargs)

    # The online part is what SB3 sees as "the" buffer, so its state shows through.

    @property
    def pos(self) -> int:
        """Row of the online part that is written next."""
        return self._online.pos

    @pos.setter
    def pos(self, value: int) -> None:
        self._online.pos = value

    @property
    def full(self) -> bool:
        """Whether the online part has wrapped around."""
        return self._online.full

    @full.setter
    def full(self, value: bool) -> None:
        self._online.full = value

    @property
    def device(self) -> th.device:
        """Torch device of the samples; SB3 sets it after loading a saved buffer."""
        return self._online.device

    @device.setter
    def device(self, value: th.device) -> None:
        self._online.device = value
        if self._expert is not None:
            self._expert.device = value

    def __getattr__(self, name: str) -> Any:
        # Storage (observations, dones, ...) is that of the online part. Names with an underscore are our own:
        # looking them up in a half-unpickled object must fail instead of recursing.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._online, name)

    @property
    def demonstration_share(self) -> float:
        """Share of each batch that demonstrations make up, in [0, 1]."""
        return self._demonstration_share

    @demonstration_share.setter
    def demonstration_share(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"demonstration_share must be between 0 and 1, not {value}")
        self._demonstration_share = float(value)

    @property
    def demonstrations(self) -> Demonstrations | None:
        """The demonstrations, fitted to the spaces (actions unscaled), or ``None``."""
        return self._demonstrations

    @property
    def demonstration_arguments(self) -> dict[str, Any]:
        """
        Arguments of a buffer with the same demonstrations: their id or path if they were given so (and
        ``n_demonstrations`` with it), otherwise themselves; empty if there are none.
        """
        # A buffer pickled by older code does not know where they came from
        known: dict[str, Any] = vars(self).get("_demonstration_arguments", {})
        return dict(known) if known or self._demonstrations is None else {"demonstrations": self._demonstrations}

    def set_demonstrations(self, source: Any, n_demonstrations: int | None = None) -> None:
        """
        Replace the demonstrations; online data stays.

        :param source: what :func:`load_demonstrations` takes, or ``None`` to go without
        :param n_demonstrations: use only the first so many episodes
        :raises ValueError: if they do not fit the spaces
        """
        if source is None:
            self._demonstrations, self._demonstration_arguments, self._expert = None, {}, None
            return
        fitted = load_demonstrations(source, n_demonstrations).for_spaces(self.observation_space, self.action_space)
        expert = self._make_part(
            fitted.n_transitions,
            self.observation_space,
            self.action_space,
            getattr(self._online, "env", None),
            device=self.device,
            n_envs=1,
            # Sharing rows between neighbours cannot work where every episode's last observation matters
            optimize_memory_usage=False,
            handle_timeout_termination=True,
        )
        _fill(expert, fitted, self.handle_timeout_termination)
        self._demonstrations, self._expert = fitted, expert
        if not isinstance(source, (str, os.PathLike)):
            self._demonstration_arguments = {"demonstrations": fitted}
        else:  # a path as text: a pickled PosixPath can't be read on Windows
            many = {} if n_demonstrations is None else {"n_demonstrations": n_demonstrations}
            self._demonstration_arguments = {"demonstrations": os.fspath(source), **many}

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store one online transition of each environment, with the arguments of the online part's class."""
        self._online.add(*args, **kwargs)

    def reset(self) -> None:
        """Forget the online data; demonstrations stay."""
        self._online.reset()
        if isinstance(self._online, HerReplayBuffer):
            # SB3 leaves the episode index behind, from which deleted episodes would still be sampled
            self._online.ep_length[:] = 0
            self._online._current_ep_start[:] = 0

    def set_env(self, env: VecEnv) -> None:
        """
        Give a loaded buffer its environment. Needed for ``HerReplayBuffer``, harmless for every other class.

        :param env: the training environment
        """
        for part in (self._online, self._expert):
            if isinstance(part, HerReplayBuffer):
                part.env = env

    def truncate_last_trajectory(self) -> None:
        """Close the episode being recorded: call it before data of another one follows, after loading for instance."""
        if isinstance(self._online, HerReplayBuffer):
            self._online.truncate_last_trajectory()
        elif self.pos > 0 or self.full:
            still_open = self._online.dones[self.pos - 1] == 0
            self._online.dones[self.pos - 1, still_open] = 1
            # A done that is a timeout ends n-step returns but not the value beyond it
            self._online.timeouts[self.pos - 1, still_open] = 1

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Samples:  # type: ignore[override]
        """
        Draw a batch: ``round(demonstration_share * batch_size)`` transitions of demonstrations, the rest online.
        All come from the demonstrations while there is no online data, all online where there are no demonstrations.

        :param batch_size: number of transitions
        :param env: normalises observations and rewards of both parts
        :return: demonstrations first; with ``discounts`` if ``n_steps`` is above 1
        :raises ValueError: if ``batch_size`` is below 1, or there is nothing to sample from
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        n_expert = 0
        if self._expert is not None:
            n_expert = round(self._demonstration_share * batch_size) if self._online_ready() else batch_size
        elif self.pos == 0 and not self.full:
            raise ValueError("the replay buffer holds neither demonstrations nor online data to sample from")
        self.last_demonstration_share = n_expert / batch_size
        if self._expert is None or n_expert == 0:
            return self._online.sample(batch_size, env)
        expert = self._expert.sample(n_expert, env)
        if n_expert == batch_size:
            return expert
        return _concatenate(expert, self._online.sample(batch_size - n_expert, env))

    def _online_ready(self) -> bool:
        if isinstance(self._online, HerReplayBuffer):
            # Hindsight goals come from finished episodes only
            return bool(self._online.ep_length.any())
        return self._online.full or self._online.pos > 0

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Samples:  # type: ignore[override]
        return self._online._get_samples(batch_inds, env=env)


def _resolve_class(
    requested: type[ReplayBuffer] | str | None, observation_space: spaces.Space, n_steps: int
) -> type[ReplayBuffer]:
    """
    :param requested: class or dotted name that the user gave
    :param observation_space: observation space
    :param n_steps: length of n-step returns
    :return: class of both parts
    :raises ValueError: if there is no such class, or it cannot do what is asked
    """
    if isinstance(n_steps, bool) or not isinstance(n_steps, (int, np.integer)) or n_steps < 1:
        raise ValueError(f"n_steps must be a whole number of at least 1, not {n_steps!r}")
    is_dict = isinstance(observation_space, spaces.Dict)
    if isinstance(requested, str):
        module, _, name = requested.rpartition(".")
        try:
            requested = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f'there is no class {requested!r}; give its dotted name, such as "stable_baselines3.HerReplayBuffer"'
            ) from error
    if requested in (None, ReplayBuffer, DictReplayBuffer):
        if n_steps > 1:
            return NStepDictReplayBuffer if is_dict else NStepReplayBuffer
        return DictReplayBuffer if is_dict else ReplayBuffer
    if (
        not isinstance(requested, type)
        or not issubclass(requested, ReplayBuffer)
        or issubclass(requested, DemonstrationReplayBuffer)
    ):
        raise ValueError(f"online_buffer_class must be a class derived from SB3's ReplayBuffer, not {requested}")
    if is_dict != issubclass(requested, DictReplayBuffer):
        raise ValueError(f"{requested.__name__} does not fit the observation space {observation_space}")
    if issubclass(requested, HerReplayBuffer) and not _GOAL_KEYS <= set(observation_space.spaces):  # type: ignore[attr-defined]
        raise ValueError(
            f"HerReplayBuffer needs observations with the keys {sorted(_GOAL_KEYS)}, "
            f"not {sorted(observation_space.spaces)}"  # type: ignore[attr-defined]
        )
    if n_steps > 1 and not issubclass(requested, (NStepReplayBuffer, NStepDictReplayBuffer)):
        raise ValueError(f"{requested.__name__} has no n-step returns: set n_steps=1 (it is {n_steps})")
    return requested


def _fill(buffer: ReplayBuffer, demonstrations: Demonstrations, handle_timeout_termination: bool) -> None:
    """
    Write all demonstrations into an empty buffer that has exactly room for them.

    :param buffer: where to
    :param demonstrations: fitted to the buffer's spaces
    :param handle_timeout_termination: whether recorded truncations count as timeouts, or as terminations
    """
    lengths = np.array([len(episode) for episode in demonstrations])
    ends = np.cumsum(lengths)
    last = ends - 1
    terminated = np.array([episode.terminations[-1] for episode in demonstrations])
    truncated = np.array([episode.truncations[-1] for episode in demonstrations])
    dones = np.zeros(buffer.buffer_size, dtype=np.float32)
    dones[last] = 1
    timeouts = np.zeros(buffer.buffer_size, dtype=np.float32)
    # A recording that just stops says nothing on what comes after, so it never counts as a termination
    timeouts[last] = ~terminated & (truncated if handle_timeout_termination else False) | ~(terminated | truncated)
    columns = (
        demonstrations.observations(),
        demonstrations.next_observations(),
        _scale(demonstrations.actions(), buffer.action_space),
        np.concatenate([episode.rewards for episode in demonstrations]),
        dones,
        timeouts,
    )
    if type(buffer).add not in (ReplayBuffer.add, DictReplayBuffer.add, HerReplayBuffer.add):
        # A class with its own bookkeeping must see each transition
        for row in range(buffer.buffer_size):
            obs, next_obs = (map_observations(lambda a, row=row: a[row : row + 1], part) for part in columns[:2])  # type: ignore[misc]
            action, reward, done, timeout = (part[row : row + 1] for part in columns[2:])
            buffer.add(obs, next_obs, action, reward, done, [{"TimeLimit.truncated": bool(timeout[0])}])  # type: ignore[arg-type]
        return
    for name, values in zip(("observations", "next_observations"), columns[:2], strict=True):
        storage = getattr(buffer, name)
        pairs = [(storage[key], values[key]) for key in values] if isinstance(values, dict) else [(storage, values)]
        for target, value in pairs:
            target[:] = value.reshape(target.shape)
    for name, values in zip(("actions", "rewards", "dones", "timeouts"), columns[2:], strict=True):
        target = getattr(buffer, name)
        target[:] = values.reshape(target.shape)
    if isinstance(buffer, HerReplayBuffer):
        buffer.ep_start[:, 0] = np.repeat(ends - lengths, lengths)
        buffer.ep_length[:, 0] = np.repeat(lengths, lengths)
    buffer.pos, buffer.full = 0, True


def _scale(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    :param actions: ``[n, action_dim]`` in the bounds of the space
    :param space: bounded ``Box``
    :return: the same in [-1, 1], ``[n, action_dim]``
    """
    assert isinstance(space, spaces.Box)
    low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
    # A dimension without extent has one value, for which any scaled action will do
    extent = np.where(high > low, high - low, 1.0)
    return 2.0 * (actions - low) / extent - 1.0


def _concatenate(first: Samples, second: Samples) -> Samples:
    """
    :param first: of the same type as ``second``
    :param second: as drawn from a buffer of the same class
    :return: both in one batch
    """
    fields: list[Any] = []
    for a, b in zip(first, second, strict=True):
        if isinstance(a, dict) and isinstance(b, dict):
            fields.append({key: th.cat((a[key], b[key])) for key in a})
        else:
            fields.append(None if a is None else th.cat((a, b)))  # type: ignore[arg-type]
    return type(first)(*fields)
