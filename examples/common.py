"""What the examples share: observations on one scale, a table and a picture of the learning curve, saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_swfp.callbacks import EvaluationPoint
from sb3_swfp.demonstrations import Demonstrations
from sb3_swfp.files import atomic_path


def normalized_env(make_env: Callable[[], gym.Env], demonstrations: Demonstrations, seed: int) -> VecNormalize:
    """
    Make the training environment, its observations scaled by the demonstrations' mean and standard deviation.

    A robot's observations are metres that differ by centimetres; unscaled, a clone hardly sees the difference. The
    statistics stay as they are in fine-tuning, because moving them would move the cloned policy.

    :param make_env: makes one environment
    :param demonstrations: where mean and standard deviation come from
    :param seed: seed of the environment
    :return: the environment, which leaves rewards alone
    """
    env = VecNormalize(make_vec_env(make_env, n_envs=1, seed=seed), training=False, norm_reward=False)
    observations = demonstrations.observations()
    if isinstance(observations, dict):
        for key, values in observations.items():
            env.obs_rms[key].update(values)
    else:
        env.obs_rms.update(observations)
    return env


def curve_table(points: Sequence[EvaluationPoint]) -> str:
    """
    Write a learning curve as a table; its first line is the clone.

    :param points: the curve, the clone's point first
    :return: the table
    """
    lines = [f"{'steps':>9}  {'success':>7}  {'against the clone':>17}  {'mean return':>11}"]
    for point in points:
        against = f"{100 * (point.success_rate - points[0].success_rate):+.0f} points"
        success = f"{100 * point.success_rate:.0f} %"
        lines.append(
            f"{point.timesteps:>9,}  {success:>7}  {'(the clone)' if point is points[0] else against:>17}  "
            f"{point.mean_reward:>11.2f}"
        )
    return "\n".join(lines)


def plot_curve(
    points: Sequence[EvaluationPoint], n_episodes: int, title: str, path: Path, teacher: float | None = None
) -> str | None:
    """
    Draw success over environment steps, with the standard error that so many episodes have.

    :param points: the curve, the clone's point first
    :param n_episodes: episodes an evaluation
    :param title: title of the picture
    :param path: where to save it
    :param teacher: success rate of the demonstrations
    :return: None if the picture is there, else what would enable it
    """
    path.unlink(missing_ok=True)  # an older run's picture must not pass for this one's
    try:
        from matplotlib.figure import Figure  # not pyplot: it would look for a screen
    except ImportError:
        return 'drawing the curve needs matplotlib: pip install "sb3-swfp[robotics]"'
    steps = np.array([point.timesteps for point in points])
    success = 100 * np.array([point.success_rate for point in points])
    # Agresti and Coull's estimate: the plain one calls 50 successes out of 50 certain.
    share = (success / 100 * n_episodes + 2) / (n_episodes + 4)
    error_bar = 100 * np.sqrt(share * (1 - share) / (n_episodes + 4))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(steps, np.clip(success - error_bar, 0, 100), np.clip(success + error_bar, 0, 100), alpha=0.2)
    axes.plot(steps, success, marker="o", label="SWFP, fine-tuned")
    axes.axhline(success[0], color="tab:gray", linestyle="--", label="clone")
    if teacher is not None:
        axes.axhline(100 * teacher, color="tab:green", linestyle=":", label="demonstrations")
    axes.set(
        title=title,
        xlabel="environment steps",
        ylabel=f"success [%], {n_episodes} fixed episodes",
        ylim=(0, 102),
        xlim=(0, max(steps[-1], 1)),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return None


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """
    Save a model, and beside it the statistics that its observations are normalised with.

    :param model: the model
    :param path: the ``.zip`` file; the statistics go to ``<name>_vecnormalize.pkl``
    """
    with atomic_path(path) as temporary:
        model.save(temporary)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        with atomic_path(path.with_name(f"{path.stem}_vecnormalize.pkl")) as temporary:
            normalize.save(str(temporary))
