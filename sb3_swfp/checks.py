"""Arguments and data that can't work are refused with a sentence that says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np

_POSITIVE = (
    "batch_size",
    "target_update_interval",
    "policy_delay",
    "n_steps",
    "buffer_size",
    "target_candidates",
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
        if name in ("critic_warmup", "critic_gradient_steps") and value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
        if name in ("gamma", "tau") and not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if name == "noise_correlation" and not 0.0 <= value < 1.0:
            raise ValueError(f"noise_correlation must lie in [0, 1), got {value}")


def check_actions(actions: np.ndarray, step: int) -> None:
    """
    :param actions: What a policy is about to do, ``[n_envs, ...]``
    :param step: Environment steps so far, for the message
    :raises ValueError: if a value is NaN or infinite
    """
    if not np.isfinite(actions).all():
        raise ValueError(
            f"The policy's action is NaN or infinite at step {step}: training has diverged. Try a smaller learning "
            "rate, or rewards of a smaller size (VecNormalize)"
        )


def check_finite(
    observations: np.ndarray | dict[str, np.ndarray], step: int, rewards: np.ndarray | None = None
) -> None:
    """
    :param observations: What the environments returned, unnormalised, ``[n_envs, ...]``, or a dictionary of such
    :param step: Environment steps so far, for the message
    :param rewards: Rewards, ``[n_envs]``
    :raises ValueError: if a value is NaN or infinite: one such value in a replay buffer ruins every network in silence
    """
    parts = dict(observations) if isinstance(observations, dict) else {"observation": observations}
    if rewards is not None:
        parts["reward"] = rewards
    for name, array in parts.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).tolist()
            raise ValueError(f"The environment returned NaN or infinity: {name} of environment(s) {bad} at step {step}")


def check_terminal_observations(infos: list[dict[str, Any]], dones: np.ndarray, step: int) -> None:
    """
    :param infos: Each environment's information, with the observation that an episode ended on
    :param dones: Which environments' episodes ended
    :param step: Environment steps so far, for the message
    :raises ValueError: as :func:`check_finite`
    """
    for i in np.flatnonzero(dones):
        last = infos[i].get("terminal_observation")
        parts = last if isinstance(last, dict) else {} if last is None else {"observation": last}
        for name, array in parts.items():
            if not np.isfinite(array).all():
                raise ValueError(
                    f"The environment returned NaN or infinity: {name} of environment(s) [{i}] at step {step}"
                )
