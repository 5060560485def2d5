"""Arguments and data that can't work are refused with a sentence that says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

_POSITIVE = (
    "batch_size",
    "target_update_interval",
    "policy_delay",
    "n_steps",
    "buffer_size",
    "gradient_steps",
    "patience",
)


def check_arguments(**arguments: Any) -> None:
    """
    :param arguments: Arguments by name, of those that this module knows
    :raises ValueError: naming the argument, its value and what it may be
    """
    for name, value in arguments.items():
        if name in _POSITIVE and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
        if name == "critic_warmup" and value < 0:
            raise ValueError(f"critic_warmup must not be negative, got {value}")
        if name in ("gamma", "tau") and not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_spaces(action_space: spaces.Space) -> None:
    """
    :param action_space: Action space, a ``Box``
    :raises ValueError: if it has infinite bounds: a flow policy acts in the scaled space [-1, 1]
    """
    assert isinstance(action_space, spaces.Box)
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise ValueError(
            f"SWFP needs an action space with finite bounds, not {action_space}. "
            "Bound it, for example with gymnasium.wrappers.RescaleAction or ClipAction"
        )


def check_transition(observations: np.ndarray | dict[str, np.ndarray], rewards: np.ndarray, step: int) -> None:
    """
    :param observations: Next observations, ``[n_envs, ...]``, or a dictionary of such
    :param rewards: Rewards, ``[n_envs]``
    :param step: Environment steps so far, for the message
    :raises ValueError: if a value is NaN or infinite: one such value in a replay buffer ruins every network in silence
    """
    parts = observations if isinstance(observations, dict) else {"observation": observations}
    for name, array in {**parts, "reward": rewards}.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).tolist()
            raise ValueError(f"The environment returned NaN or infinity: {name} of environment(s) {bad} at step {step}")
