"""Callbacks: cloning first, success over fixed episodes, and checkpoints that a kill cannot spoil."""

from __future__ import annotations

import csv
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_swfp.demonstrations import load_demonstrations
from sb3_swfp.evaluation import EnvSource, EvaluationResult, SuccessRule, close_envs, evaluate_success, make_envs
from sb3_swfp.files import atomic_path


class EvaluationPoint(NamedTuple):
    """
    One point of a learning curve.

    :param timesteps: environment steps trained for
    :param success_rate: share of the evaluation episodes that succeeded, in [0, 1]
    :param mean_reward: mean undiscounted return of the evaluation episodes
    """

    timesteps: int
    success_rate: float
    mean_reward: float


class SuccessEvalCallback(BaseCallback):
    """
    Evaluate success on the same episodes again and again, log it, and keep the curve and the best model.

    Unlike SB3's ``EvalCallback`` it counts environment steps (not calls, which several environments make fewer of),
    evaluates before the first step too, so that the curve starts at the clone, and chooses the episodes' seeds. An
    on-policy algorithm learns between roll-outs: it is evaluated once it has learned from the one that was due.

    :param env: environment id, factory, environment, or list of environments (see ``evaluate_success``). Those made
        here are made at the first evaluation and closed when training ends.
    :param eval_freq: environment steps from one evaluation to the next
    :param n_eval_episodes: episodes an evaluation
    :param seed: seed of the first episode
    :param deterministic: whether to ask the model for deterministic actions
    :param eval_at_start: whether to evaluate before the first step
    :param history_path: ``.csv`` or ``.npz`` file for the curve, replaced after each evaluation. A run that continues
        (``reset_num_timesteps=False``) picks the curve up from there.
    :param best_model_save_path: folder for ``best_model.zip``: highest success, ties decided by mean return (and
        ``best_vecnormalize.pkl`` beside it if the model has such statistics)
    :param n_envs: environments to make side by side when ``env`` is an id or a factory
    :param success_key: key of the step's ``info`` that tells success (see ``evaluate_success``)
    :param success_rule: ``"last"`` or ``"any"`` (see ``evaluate_success``)
    :param verbose: 1 prints one line an evaluation
    :raises ValueError: if ``eval_freq`` is below 1 or the history's suffix is neither ``.csv`` nor ``.npz``
    """

    def __init__(
        self,
        env: EnvSource,
        eval_freq: int = 5_000,
        n_eval_episodes: int = 50,
        seed: int = 10_000,
        deterministic: bool = True,
        *,
        eval_at_start: bool = True,
        history_path: str | os.PathLike[str] | None = None,
        best_model_save_path: str | os.PathLike[str] | None = None,
        n_envs: int = 10,
        success_key: str | None = None,
        success_rule: SuccessRule | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__(verbose)
        if eval_freq < 1:
            raise ValueError(f"eval_freq must be at least 1 environment step, got {eval_freq}")
        self.env = env
        self.eval_freq = int(eval_freq)
        self.n_eval_episodes = n_eval_episodes
        self.seed = seed
        self.deterministic = deterministic
        self.eval_at_start = eval_at_start
        self.history_path = None if history_path is None else _checked_suffix(Path(history_path))
        self.best_model_save_path = None if best_model_save_path is None else Path(best_model_save_path)
        self.n_envs = n_envs
        self.success_key = success_key
        self.success_rule = success_rule
        self.points: list[EvaluationPoint] = []
        self.last_result: EvaluationResult | None = None
        self._envs: list[gym.Env] = []
        self._made_here = False
        self._next_eval = 0

    @property
    def history(self) -> list[tuple[int, float]]:
        """The curve as ``[(timesteps, success_rate), ...]``."""
        return [(point.timesteps, point.success_rate) for point in self.points]

    @property
    def best(self) -> EvaluationPoint | None:
        """The best point so far: highest success, then highest mean return."""
        return max(self.points, key=_goodness, default=None)

    def evaluate(self) -> EvaluationResult:
        """
        Evaluate now: log, print, and bring the files up to date.

        :return: the evaluation's result
        """
        if not self._envs:
            self._envs, self._made_here = make_envs(self.env, min(self.n_envs, self.n_eval_episodes))
        result = evaluate_success(
            self.model,
            self._envs,
            self.n_eval_episodes,
            self.seed,
            self.deterministic,
            success_key=self.success_key,
            success_rule=self.success_rule,
        )
        point = EvaluationPoint(result.timesteps, result.success_rate, result.mean_return)
        is_best = self.best is None or _goodness(point) > _goodness(self.best)
        self.points.append(point)
        self.last_result = result
        self.logger.record("eval/success_rate", result.success_rate)
        self.logger.record("eval/mean_reward", result.mean_return)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.verbose >= 1:
            print(f"{result.timesteps:>9,} steps: {result}{' (best so far)' if is_best else ''}", flush=True)
        if self.history_path is not None:
            write_history(self.history_path, self.points)
        if is_best and self.best_model_save_path is not None:
            self._save_best(self.best_model_save_path)
        return result

    def _on_training_start(self) -> None:
        # learn() set the counter back: this is a new curve. learn() continues: so does the curve, if need be from disk.
        if self.num_timesteps == 0:
            self.points = []
        elif not self.points and self.history_path is not None and self.history_path.exists():
            self.points = [point for point in read_history(self.history_path) if point.timesteps <= self.num_timesteps]
        seen_already = bool(self.points) and self.points[-1].timesteps == self.num_timesteps
        if self.eval_at_start and not seen_already:
            self.evaluate()
        self._next_eval = (self.num_timesteps // self.eval_freq + 1) * self.eval_freq

    def _on_step(self) -> bool:
        if not isinstance(self.model, OnPolicyAlgorithm):
            self._evaluate_if_due()
        return True

    def _on_rollout_start(self) -> None:
        # An on-policy algorithm learns between its roll-outs: within one there is nothing new, and at its end the
        # update that this experience pays for is still to come
        if isinstance(self.model, OnPolicyAlgorithm):
            self._evaluate_if_due()

    def _evaluate_if_due(self) -> None:
        if self.num_timesteps >= self._next_eval:
            self.evaluate()
            self._next_eval = (self.num_timesteps // self.eval_freq + 1) * self.eval_freq

    def _on_training_end(self) -> None:
        if isinstance(self.model, OnPolicyAlgorithm):
            self._evaluate_if_due()
        if self._made_here:
            close_envs(self._envs)
        self._envs = []

    def _save_best(self, folder: Path) -> None:
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None:
            with atomic_path(folder / "best_vecnormalize.pkl") as temporary:
                normalize.save(str(temporary))
        with atomic_path(folder / "best_model.zip") as temporary:
            self.model.save(temporary)


class AtomicCheckpointCallback(CheckpointCallback):
    """
    SB3's ``CheckpointCallback``, except that Ctrl-C or a kill in the middle leaves the previous files readable.

    Every file is written under a temporary name and renamed. The model is written last, so a checkpoint whose
    ``.zip`` exists is complete.

    :param save_freq: calls of the callback (steps of each environment) from one checkpoint to the next
    :param save_path: folder for the checkpoints
    :param name_prefix: what their names begin with
    :param save_replay_buffer: whether to save the replay buffer too
    :param save_vecnormalize: whether to save the ``VecNormalize`` statistics too
    :param keep_last: delete older checkpoints that this callback wrote, all but so many; None keeps all
    :param verbose: 2 prints each file's name
    :raises ValueError: if ``save_freq`` or ``keep_last`` is below 1
    """

    def __init__(
        self,
        save_freq: int,
        save_path: str | os.PathLike[str],
        name_prefix: str = "rl_model",
        save_replay_buffer: bool = False,
        save_vecnormalize: bool = False,
        *,
        keep_last: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(save_freq, os.fspath(save_path), name_prefix, save_replay_buffer, save_vecnormalize, verbose)
        if save_freq < 1:
            raise ValueError(f"save_freq must be at least 1 call, got {save_freq}")
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last must be at least 1 checkpoint (or None for all), got {keep_last}")
        self.keep_last = keep_last
        self._written: list[list[Path]] = []

    def _on_step(self) -> bool:
        if self.n_calls % self.save_freq == 0:
            written = self._write_checkpoint()
            # A second learn() from step 0 writes the same names again: they must not be deleted as old ones.
            self._written = [older for older in self._written if older[-1] != written[-1]] + [written]
            # Only now is the new checkpoint complete, and only now may an old one go.
            while self.keep_last is not None and len(self._written) > self.keep_last:
                for path in self._written.pop(0):
                    path.unlink(missing_ok=True)
        return True

    def _write_checkpoint(self) -> list[Path]:
        """Write all files of one checkpoint, the model last; return their paths."""
        written = []
        normalize = self.model.get_vec_normalize_env()
        if self.save_vecnormalize and normalize is not None:
            path = Path(self._checkpoint_path("vecnormalize_", extension="pkl"))
            with atomic_path(path) as temporary:
                normalize.save(str(temporary))
            written.append(path)
        if self.save_replay_buffer and getattr(self.model, "replay_buffer", None) is not None:
            path = Path(self._checkpoint_path("replay_buffer_", extension="pkl"))
            with atomic_path(path) as temporary:
                self.model.save_replay_buffer(temporary)  # type: ignore[attr-defined]
            written.append(path)
        path = Path(self._checkpoint_path(extension="zip"))
        with atomic_path(path) as temporary:
            self.model.save(temporary)
        written.append(path)
        if self.verbose >= 2:
            print("Saved checkpoint " + ", ".join(map(str, written)))
        return written


class PretrainCallback(BaseCallback):
    """
    Clone demonstrations before the first step of ``learn``: offline-to-online training from one YAML entry of RL Zoo.

    A model that is pretrained already (it was loaded, say) is left as it is.

    :param demonstrations: anything that ``load_demonstrations`` takes; those of the replay buffer when omitted
    :param n_demonstrations: how many of its episodes to use, the first ones; all when omitted
    :param gradient_steps: most gradient steps to run
    :param progress_bar: whether to show a progress bar
    :param verbose: 1 prints what came of it
    :param pretrain_kwargs: more arguments of ``pretrain``, such as ``learning_rate`` or ``patience``
    """

    def __init__(
        self,
        demonstrations: Any = None,
        n_demonstrations: int | None = None,
        gradient_steps: int = 5_000,
        progress_bar: bool = False,
        verbose: int = 1,
        **pretrain_kwargs: Any,
    ) -> None:
        super().__init__(verbose)
        self.demonstrations = demonstrations
        self.n_demonstrations = n_demonstrations
        self.pretrain_kwargs = {"gradient_steps": gradient_steps, "progress_bar": progress_bar} | pretrain_kwargs

    def check(self, algorithm: type, model: Any = None) -> None:
        """
        Find out now, before anything is run, what would fail when learning starts.

        :param algorithm: The algorithm's class
        :param model: A model of it, to see whether it brings demonstrations of its own
        :raises ValueError: if it has no ``pretrain()``, or that has no such arguments, or these aren't demonstrations,
            or there are none at all
        :raises FileNotFoundError: if the demonstrations aren't there
        """
        name = algorithm.__name__
        if not hasattr(algorithm, "pretrain"):
            raise ValueError(f"PretrainCallback needs an algorithm that has pretrain(), such as SWFP; {name} has none")
        known = set(inspect.signature(algorithm.pretrain).parameters) - {"self", "demonstrations"}
        unknown = sorted(self.pretrain_kwargs.keys() - known)
        if unknown:
            raise ValueError(f"{name}.pretrain() has no argument {unknown[0]!r}; it has {', '.join(sorted(known))}")
        self._load_demonstrations()
        if model is None or self.demonstrations is not None or getattr(model, "is_pretrained", False):
            return
        owners = (model, getattr(model, "replay_buffer", None))
        if all(getattr(owner, "demonstrations", None) is None for owner in owners):
            raise ValueError(
                "PretrainCallback has nothing to clone: give it demonstrations, or the algorithm "
                + ("demonstrations" if not hasattr(model, "replay_buffer") else "replay_buffer_kwargs that have them")
            )

    def _load_demonstrations(self) -> None:
        if self.demonstrations is not None:
            self.demonstrations = load_demonstrations(self.demonstrations, n_episodes=self.n_demonstrations)
            self.n_demonstrations = None

    def _on_training_start(self) -> None:
        model: Any = self.model
        if getattr(model, "is_pretrained", False):
            return
        self.check(type(model), model)
        # Cloning logs to a run of its own; the one that learn() has opened goes on afterwards
        logger = model.logger
        try:
            result = model.pretrain(self.demonstrations, **self.pretrain_kwargs)
        finally:
            model._logger = logger
        normalize = model.get_vec_normalize_env()
        if normalize is not None:
            # The first observation was normalised before there were statistics
            model._last_obs = normalize.normalize_obs(normalize.get_original_obs())
        if self.verbose >= 1:
            # Not everything that is pretrained is a clone: Cal-QL's offline phase has no validation loss
            cloned = None if result is None else (result.gradient_steps, result.validation_loss, result.best_step)
            print(
                "Pretrained on the demonstrations"
                if cloned is None
                else "Cloned the demonstrations in {:,} steps, validation loss {:.3f} at step {:,}".format(*cloned)
            )

    def _on_step(self) -> bool:
        return True


def write_history(path: str | os.PathLike[str], points: Sequence[EvaluationPoint]) -> None:
    """
    Write a learning curve, atomically.

    :param path: ``.csv`` (one line a point, with a header) or ``.npz`` (one array a column)
    :param points: the curve
    :raises ValueError: if the suffix is another one
    """
    path = _checked_suffix(Path(path))
    columns = {name: np.array([getattr(point, name) for point in points]) for name in EvaluationPoint._fields}
    with atomic_path(path) as temporary:
        if path.suffix == ".npz":
            np.savez(temporary, **columns)  # type: ignore[arg-type]
            return
        with open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(EvaluationPoint._fields)
            writer.writerows(points)


def read_history(path: str | os.PathLike[str]) -> list[EvaluationPoint]:
    """
    Read a learning curve that :func:`write_history` wrote.

    :param path: ``.csv`` or ``.npz`` file
    :return: the curve
    :raises ValueError: if the suffix is another one or the file does not hold such a curve
    """
    path = _checked_suffix(Path(path))
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as columns:
                rows = list(zip(*(columns[name].tolist() for name in EvaluationPoint._fields), strict=True))
        else:
            with open(path, newline="", encoding="utf-8") as handle:
                header, *rows = map(tuple, csv.reader(handle))
            if header != EvaluationPoint._fields:
                raise ValueError(f"its columns are {list(header)}")
        return [EvaluationPoint(int(steps), float(success), float(reward)) for steps, success, reward in rows]
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} does not hold a learning curve with columns {list(EvaluationPoint._fields)}"
        ) from error


def _goodness(point: EvaluationPoint) -> tuple[float, float]:
    return point.success_rate, point.mean_reward


def _checked_suffix(path: Path) -> Path:
    if path.suffix not in (".csv", ".npz"):
        raise ValueError(f"a learning curve is written as .csv or .npz, got {str(path)!r}")
    return path
