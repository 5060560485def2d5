"""The one type in which demonstrations travel through the package: a checked, immutable sequence of episodes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from sb3_swfp.files import atomic_path

if TYPE_CHECKING:
    from gymnasium import spaces

Observations = np.ndarray | dict[str, np.ndarray]

OBSERVATION_PREFIX = "observations/"
# Actions recorded in float64 may leave float32 bounds by a rounding error; that is not worth a warning.
_BOUND_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Episode:
    """
    One recorded episode of ``T`` steps.

    :param observations: ``[T + 1, *obs_shape]``, or a dictionary of such arrays; the last row follows the last action
    :param actions: ``[T, action_dim]``, in the environment's own (unscaled) bounds
    :param rewards: ``[T]``
    :param terminations: ``[T]``, true where the task itself ended (value of what follows is zero)
    :param truncations: ``[T]``, true where the recording was cut, by a time limit for instance
    :param success: whether the episode solved its task; ``None`` where the data does not say
    """

    observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    success: bool | None = None

    def __len__(self) -> int:
        """Number of transitions, ``T``."""
        return len(self.actions)


def map_observations(function: Callable[[np.ndarray], np.ndarray], observations: Observations) -> Observations:
    """
    Apply a function to an observation array, or to each array of a dictionary.

    :param function: what to apply
    :param observations: array or dictionary of arrays
    :return: the same structure
    """
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


def observation_items(observations: Observations) -> list[tuple[str, np.ndarray]]:
    """
    Name and array of each part of an observation, for messages and files.

    :param observations: array or dictionary of arrays
    :return: ``[("observations", array)]`` or ``[("observations/<key>", array), ...]``
    """
    if isinstance(observations, dict):
        return [(f"{OBSERVATION_PREFIX}{key}", value) for key, value in observations.items()]
    return [("observations", observations)]


class Demonstrations(Sequence[Episode]):
    """
    A non-empty sequence of episodes whose shapes agree and whose values are finite.

    :param episodes: the episodes
    :param source: where they came from, for messages and logs
    :raises ValueError: naming episode, array and step, if something does not fit
    """

    def __init__(self, episodes: Iterable[Episode], source: str = "") -> None:
        try:
            items = list(episodes)
        except TypeError as error:
            raise ValueError(f"demonstrations must be an iterable of Episode, not {type(episodes).__name__}") from error
        if not items:
            raise ValueError(f"no episodes in the demonstrations{f' from {source}' if source else ''}")
        where = f"{source}: " if source else ""
        self._episodes = tuple(_checked_episode(item, f"{where}episode {index}") for index, item in enumerate(items))
        self.source = source
        for index, episode in enumerate(self._episodes):
            if _layout(episode) != _layout(self._episodes[0]):
                raise ValueError(
                    f"{where}episode {index} has shapes {_layout(episode)}, "
                    f"but episode 0 has {_layout(self._episodes[0])}; all episodes must agree"
                )

    def _with(self, episodes: Iterable[Episode]) -> Demonstrations:
        """Same source, other episodes, already checked: the finite-value scan is not worth repeating on each slice."""
        new = object.__new__(Demonstrations)
        new._episodes = tuple(episodes)
        new.source = self.source
        return new

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> Demonstrations: ...

    def __getitem__(self, index: int | slice) -> Episode | Demonstrations:
        if not isinstance(index, slice):
            return self._episodes[index]
        if not self._episodes[index]:
            raise ValueError(f"the slice {index} of {len(self)} episodes is empty")
        return self._with(self._episodes[index])

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._episodes)

    def __repr__(self) -> str:
        source = f", source={self.source!r}" if self.source else ""
        return f"Demonstrations({len(self)} episodes, {self.n_transitions} transitions{source})"

    @property
    def n_transitions(self) -> int:
        """Number of transitions in all episodes together."""
        return sum(map(len, self._episodes))

    def returns(self) -> np.ndarray:
        """:return: undiscounted sum of rewards of each episode, ``[n_episodes]``"""
        return np.array([episode.rewards.sum(dtype=np.float64) for episode in self._episodes])

    def discounted_returns(self, gamma: float) -> np.ndarray:
        """
        Monte-Carlo reward-to-go of every transition. What would follow a truncated recording counts as zero.

        :param gamma: discount factor
        :return: ``[n_transitions]``, in the order of :meth:`actions`
        """
        parts = []
        for episode in self._episodes:
            to_go = np.empty(len(episode), dtype=np.float64)
            running = 0.0
            for step in range(len(episode) - 1, -1, -1):
                running = float(episode.rewards[step]) + gamma * running
                to_go[step] = running
            parts.append(to_go)
        return np.concatenate(parts)

    def success_rate(self) -> float | None:
        """:return: share of successful episodes among those that say; ``None`` if none does"""
        known = [episode.success for episode in self._episodes if episode.success is not None]
        return float(np.mean(known)) if known else None

    def first(self, n: int) -> Demonstrations:
        """
        :param n: number of episodes to keep
        :return: the first ``n`` episodes
        :raises ValueError: if ``n`` is below 1 or above the number of episodes
        """
        check_n_episodes(n, len(self), self.source)
        return self._with(self._episodes[:n])

    def split(self, fraction: float, seed: int) -> tuple[Demonstrations, Demonstrations | None]:
        """
        Split by whole episodes, since neighbouring steps of one episode are near copies of each other.

        Both parts get at least one episode if there are two or more; the order is kept within each part.

        :param fraction: share of the episodes that go to the validation part, in [0, 1)
        :param seed: which episodes those are
        :return: training and validation part; the latter is ``None`` for ``fraction=0`` or a single episode
        :raises ValueError: if ``fraction`` is outside [0, 1)
        """
        if not 0 <= fraction < 1:
            raise ValueError(f"the validation fraction must be at least 0 and below 1, not {fraction}")
        if fraction == 0 or len(self) < 2:
            return self, None
        n_validation = min(max(round(fraction * len(self)), 1), len(self) - 1)
        chosen = set(np.random.default_rng(seed).permutation(len(self))[:n_validation].tolist())
        return (
            self._with(episode for index, episode in enumerate(self._episodes) if index not in chosen),
            self._with(episode for index, episode in enumerate(self._episodes) if index in chosen),
        )

    def observations(self) -> Observations:
        """:return: the observation before each action, ``[n_transitions, ...]`` (or a dictionary of such)"""
        return self._flat_observations(slice(None, -1))

    def next_observations(self) -> Observations:
        """:return: the observation after each action, ``[n_transitions, ...]`` (or a dictionary of such)"""
        return self._flat_observations(slice(1, None))

    def actions(self) -> np.ndarray:
        """:return: all actions, ``[n_transitions, action_dim]``, unscaled"""
        return np.concatenate([episode.actions for episode in self._episodes])

    def _flat_observations(self, rows: slice) -> Observations:
        parts = [episode.observations for episode in self._episodes]
        if isinstance(parts[0], dict):
            return {key: np.concatenate([part[key][rows] for part in parts]) for key in parts[0]}
        return np.concatenate([part[rows] for part in parts])  # type: ignore[index]

    def for_spaces(self, observation_space: spaces.Space, action_space: spaces.Space) -> Demonstrations:
        """
        Fit the data to an environment: check shapes, cast types, turn images channel first where the environment's
        are, clip actions to the bounds (with one warning that says how many were outside).

        :param observation_space: the environment's observation space
        :param action_space: the environment's action space, a bounded ``Box``
        :return: new demonstrations; the data of these is left as it is
        :raises ValueError: naming both shapes, or both sets of keys, if they do not match
        """
        from gymnasium import spaces

        if not isinstance(action_space, spaces.Box):
            raise ValueError(f"demonstrations need a continuous action space (Box), not {action_space}")
        if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
            raise ValueError(f"demonstrations need finite action bounds to be scaled by, not those of {action_space}")
        dimension = self._episodes[0].actions.shape[1]
        if dimension != int(np.prod(action_space.shape)):
            raise ValueError(
                f"actions of the demonstrations have shape ({dimension},), the environment's {action_space.shape}"
            )
        low, high = action_space.low.reshape(-1), action_space.high.reshape(-1)
        tolerance = _BOUND_TOLERANCE * np.maximum(high.astype(np.float64) - low, 1)
        fitted, n_outside = [], 0
        for episode in self._episodes:
            actions = episode.actions.astype(action_space.dtype)
            n_outside += int(((actions < low - tolerance) | (actions > high + tolerance)).sum())
            observations = _fit_observations(episode.observations, observation_space)
            fitted.append(replace(episode, observations=observations, actions=np.clip(actions, low, high)))
        if n_outside:
            warnings.warn(
                f"clipped {n_outside} of {self.n_transitions * dimension} action values of the demonstrations "
                f"to the bounds of the action space",
                stacklevel=2,
            )
        return self._with(fitted)

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write a compressed ``.npz`` that :func:`load_demonstrations` reads without unpickling anything.

        The file is replaced in one go: an interrupted save leaves the former file whole.

        :param path: where to, ending in ``.npz``; missing folders are made
        :raises ValueError: if the path does not end in ``.npz``
        """
        target = Path(path)
        if target.suffix.lower() != ".npz":
            raise ValueError(f"demonstrations are saved as .npz, but the path is {target}")
        # An open file, because NumPy appends a suffix to names
        with atomic_path(target) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **self._to_arrays())  # type: ignore[arg-type]

    def _to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the ``.npz`` format: episodes end to end, and the number of transitions of each."""
        success = [-1 if episode.success is None else int(episode.success) for episode in self._episodes]
        arrays: dict[str, np.ndarray] = {
            "episode_lengths": np.array([len(episode) for episode in self._episodes], dtype=np.int64),
            "success": np.array(success, dtype=np.int8),
            "source": np.array(self.source),
        }
        for name in ("actions", "rewards", "terminations", "truncations"):
            arrays[name] = np.concatenate([getattr(episode, name) for episode in self._episodes])
        arrays.update(observation_items(self._flat_observations(slice(None))))
        return arrays


def check_n_episodes(n: int, available: int, source: str = "") -> None:
    """
    :param n: number of episodes asked for
    :param available: number of episodes there are
    :param source: of which data, for the message
    :raises ValueError: if ``n`` is not a whole number between 1 and ``available``
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= available:
        raise ValueError(f"asked for {n!r} episodes, but {source or 'the demonstrations'} has 1 to {available} to give")


def _layout(episode: Episode) -> dict[str, tuple[int, ...]]:
    """Shapes of one step of an episode, by array."""
    parts = sorted((name, value.shape[1:]) for name, value in observation_items(episode.observations))
    return {**dict(parts), "actions": episode.actions.shape[1:]}


def _checked_episode(episode: Episode, where: str) -> Episode:
    """
    :param episode: what the caller gave
    :param where: which episode it is, for the message
    :return: the same data as arrays, flags as booleans
    :raises ValueError: if lengths or shapes disagree, a value is not finite, or the episode ends before its last step
    """
    if not isinstance(episode, Episode):
        raise ValueError(f"{where} must be an Episode, not {type(episode).__name__}")
    if isinstance(episode.observations, dict) and not episode.observations:
        raise ValueError(f"{where}: the dictionary of observations is empty")
    checked = Episode(
        observations=map_observations(np.asarray, episode.observations),
        actions=np.asarray(episode.actions),
        rewards=np.asarray(episode.rewards),
        terminations=np.asarray(episode.terminations),
        truncations=np.asarray(episode.truncations),
        success=_checked_success(episode.success, where),
    )
    if checked.actions.ndim != 2 or len(checked.actions) < 1:
        raise ValueError(f"{where}: actions must have shape [T >= 1, action_dim], not {checked.actions.shape}")
    n_steps = len(checked)
    for name, array in observation_items(checked.observations):
        _check_array(array, name, n_steps + 1, where, f"one more than the {n_steps} actions")
    for name in ("actions", "rewards", "terminations", "truncations"):
        array = getattr(checked, name)
        if name != "actions" and array.ndim != 1:
            raise ValueError(f"{where}: {name} must have shape ({n_steps},), not {array.shape}")
        _check_array(array, name, n_steps, where, "one for each action")
    checked = replace(
        checked, terminations=checked.terminations.astype(bool), truncations=checked.truncations.astype(bool)
    )
    early = np.flatnonzero((checked.terminations | checked.truncations)[:-1])
    if early.size:
        raise ValueError(
            f"{where} ends at step {early[0]} but has {n_steps} steps; cut the data there: an Episode holds one episode"
        )
    return checked


def _checked_success(success: Any, where: str) -> bool | None:
    if success is None:
        return None
    value = np.asarray(success)  # an environment's info may have an array of one
    if value.size != 1 or value.dtype.kind not in "biuf" or value.item() not in (0, 1):
        raise ValueError(f"{where}: success must be True, False or None, not {success!r}")
    return bool(value.item())


def _check_array(array: np.ndarray, name: str, length: int, where: str, reason: str) -> None:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where}: {name} must hold numbers, not {array.dtype}; nested structures are not supported")
    if array.ndim < 1 or len(array) != length:
        raise ValueError(f"{where}: {name} must have length {length} ({reason}), but its shape is {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        position = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{where}, step {position[0]}: {name} holds {array[tuple(position)]}; values must be finite")


def _fit_observations(observations: Observations, space: spaces.Space) -> Observations:
    """
    :param observations: of one episode
    :param space: the environment's observation space
    :return: the observations in the shape and type of the space
    :raises ValueError: if they are not of the space's structure or shape
    """
    from gymnasium import spaces

    if not isinstance(space, spaces.Dict):
        if isinstance(observations, dict):
            raise ValueError(
                f"observations of the demonstrations are a dictionary with keys {sorted(observations)}, "
                f"but the environment's are {space}"
            )
        return _fit_array(observations, space, "observations")
    if not isinstance(observations, dict):
        raise ValueError(
            f"observations of the demonstrations are arrays of shape {observations.shape[1:]}, "
            f"but the environment's are a dictionary with keys {sorted(space.spaces)}"
        )
    if set(observations) != set(space.spaces):
        raise ValueError(
            f"observations of the demonstrations have keys {sorted(observations)}, "
            f"the environment's {sorted(space.spaces)}"
        )
    return {
        key: _fit_array(observations[key], part, f"{OBSERVATION_PREFIX}{key}") for key, part in space.spaces.items()
    }


def _fit_array(array: np.ndarray, space: spaces.Space, name: str) -> np.ndarray:
    shape = space.shape
    if shape is None:
        raise ValueError(f"{name}: the environment's space {space} is not supported; use Box, Discrete or Dict")
    given = array.shape[1:]
    channel_last = len(shape) == len(given) == 3 and (given[2], given[0], given[1]) == shape
    if given != shape and channel_last and array.dtype == np.uint8:
        # SB3 wraps image environments to be channel first; recordings are made before that wrapper.
        array = np.moveaxis(array, -1, 1)
    elif given != shape:
        raise ValueError(f"{name} of the demonstrations have shape {given}, the environment's {shape}")
    dtype = np.dtype(space.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        fitted = np.ascontiguousarray(array, dtype=dtype)
    if dtype.kind in "iu" and not np.array_equal(array, fitted):
        raise ValueError(f"{name} of the demonstrations are {array.dtype}, the environment's are {dtype}")
    if dtype.kind == "f" and not np.isfinite(fitted).all():
        raise ValueError(f"{name} of the demonstrations are up to {np.abs(array).max():g}, too large for {dtype}")
    return fitted
