"""What every algorithm here shares: demonstrations in the replay buffer, a temperature, safe files, checked data."""

from __future__ import annotations

import io
import os
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_swfp.checks import check_actions, check_finite, check_terminal_observations
from sb3_swfp.demonstrations import Demonstrations, load_demonstrations
from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer
from sb3_swfp.files import atomic_path
from sb3_swfp.saving import AtomicSave

#: Arguments of the replay buffer that say which demonstrations it has
_DEMONSTRATION_ARGUMENTS = ("demonstrations", "n_demonstrations")

SelfDemonstrationAlgorithm = TypeVar("SelfDemonstrationAlgorithm", bound="DemonstrationAlgorithm")


class DemonstrationAlgorithm(AtomicSave, OffPolicyAlgorithm):
    """
    SB3's off-policy algorithm, with demonstrations in its replay buffer and an entropy coefficient.

    A subclass sets ``ent_coef`` and ``target_entropy`` (as SB3's SAC has them) before it calls ``_setup_model``.
    """

    action_space: spaces.Box
    ent_coef: str | float
    target_entropy: str | float
    log_ent_coef: th.Tensor
    #: Where the coefficient is learned
    ent_coef_optimizer: th.optim.Adam | None = None
    #: Whether a missing demonstration file is an error: a loaded policy must act on a machine that doesn't have it
    _demonstrations_required = True
    #: Why they could not be read, if a loaded policy does without them
    _missing_demonstrations: str | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._metrics: dict[str, Any] = {}

    def _setup_model(self) -> None:
        self.action_dim = int(np.prod(self.action_space.shape))
        if self.replay_buffer_class is None and "demonstrations" in self.replay_buffer_kwargs:
            self.replay_buffer_class = DemonstrationReplayBuffer
        with warnings.catch_warnings():
            if self.replay_buffer_class is not None and issubclass(self.replay_buffer_class, DemonstrationReplayBuffer):
                if self.replay_buffer is None:
                    self.replay_buffer = self._make_demonstration_buffer()
                # SB3 warns that n_steps won't reach a custom buffer; this one has it
                warnings.filterwarnings("ignore", message="`n_steps=.*is ignored")
            super()._setup_model()
        self._setup_ent_coef()

    def _make_demonstration_buffer(self) -> ReplayBuffer:
        assert self.replay_buffer_class is not None
        # `env` is for hindsight goals; it must not end up in the saved replay_buffer_kwargs
        kwargs = {"n_steps": self.n_steps, "gamma": self.gamma, "env": self.env} | self.replay_buffer_kwargs
        arguments = (self.buffer_size, self.observation_space, self.action_space, self.device, self.n_envs)
        try:
            return self.replay_buffer_class(*arguments, self.optimize_memory_usage, **kwargs)
        except (FileNotFoundError, ImportError, ValueError) as error:
            if self._demonstrations_required or "demonstrations" not in kwargs:
                raise
            warnings.warn(
                f"The demonstrations that this model was trained with are not here ({error}). It can act; "
                "before learn(), call model.replay_buffer.set_demonstrations(...)",
                stacklevel=2,
            )
            self._missing_demonstrations = str(error)
            for name in _DEMONSTRATION_ARGUMENTS:
                kwargs.pop(name, None)
            return self.replay_buffer_class(*arguments, self.optimize_memory_usage, **kwargs)

    def _setup_ent_coef(self) -> None:
        if self.target_entropy == "auto":
            self.target_entropy = -float(self.action_dim)
        try:
            self.target_entropy = float(self.target_entropy)
        except ValueError as error:
            raise ValueError(f'target_entropy must be a number or "auto", not {self.target_entropy!r}') from error
        learned = isinstance(self.ent_coef, str) and (self.ent_coef == "auto" or self.ent_coef.startswith("auto_"))
        try:
            initial = float(str(self.ent_coef).removeprefix("auto").removeprefix("_") or 1.0)
        except ValueError as error:
            message = f'ent_coef must be a number, "auto" or "auto_<initial value>", not {self.ent_coef!r}'
            raise ValueError(message) from error
        if learned and not 0.0 < initial < float("inf"):
            raise ValueError(f"The initial value of ent_coef must be greater than 0, got {self.ent_coef!r}")
        if not 0.0 <= initial < float("inf"):
            raise ValueError(f"ent_coef must not be negative or infinite, got {self.ent_coef}")
        # A fixed coefficient has it too, unused: load() fills in what the file has, whatever it is now to be
        self.log_ent_coef = th.log(th.ones(1, device=self.device) * initial).requires_grad_(learned)
        self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1)) if learned else None

    def _current_ent_coef(self) -> float:
        return float(self.ent_coef) if self.ent_coef_optimizer is None else self.log_ent_coef.exp().item()

    def _train_ent_coef(self, entropy: th.Tensor) -> None:
        if self.ent_coef_optimizer is not None:
            assert isinstance(self.target_entropy, float)
            loss = (self.log_ent_coef * (entropy - self.target_entropy)).mean()
            self.ent_coef_optimizer.zero_grad()
            loss.backward()
            self.ent_coef_optimizer.step()

    def _log_metrics(self) -> None:
        if isinstance(self.replay_buffer, DemonstrationReplayBuffer):
            self._metrics["demonstration_share"] = self.replay_buffer.last_demonstration_share
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        # Plain numbers: these are saved with the model, and must load on any device
        self._metrics = {name: float(value) for name, value in self._metrics.items()}
        for name, value in self._metrics.items():
            self.logger.record(f"train/{name}", value)

    def _demonstrations_for_pretraining(self, source: Any) -> Demonstrations:
        buffer = self.replay_buffer if isinstance(self.replay_buffer, DemonstrationReplayBuffer) else None
        if source is None:
            if buffer is None or buffer.demonstrations is None:
                raise ValueError(
                    "pretrain() needs demonstrations: pass them, or use replay_buffer_class=DemonstrationReplayBuffer "
                    'with replay_buffer_kwargs={"demonstrations": ...}'
                )
            return buffer.demonstrations
        return load_demonstrations(source).for_spaces(self.observation_space, self.action_space)

    def _keep_demonstrations(self, source: Any, data: Demonstrations) -> None:
        buffer = self.replay_buffer
        if isinstance(buffer, DemonstrationReplayBuffer) and buffer.demonstrations is None:
            # A path stays one in the model's file
            buffer.set_demonstrations(source if isinstance(source, (str, os.PathLike)) else data)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        actions, buffer_actions = super()._sample_action(learning_starts, action_noise, n_envs)
        # Before they reach a robot: many environments return finite observations for them, and nothing would be noticed
        check_actions(buffer_actions, self.num_timesteps)
        return actions, buffer_actions

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        # Before normalisation: a NaN in one environment would show up in all through the running statistics
        normalize = self._vec_normalize_env
        observations = new_obs if normalize is None else normalize.get_original_obs()
        rewards = reward if normalize is None else normalize.get_original_reward()
        check_terminal_observations(infos, dones, self.num_timesteps)
        check_finite(observations, self.num_timesteps, rewards)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._after_transition(rewards, dones)

    def _after_transition(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        """
        Called once a step of the environments is stored.

        :param rewards: Unnormalised rewards, ``[n_envs]``
        :param dones: Which episodes ended, ``[n_envs]``
        """

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        buffer = self.replay_buffer
        if self._missing_demonstrations is not None and getattr(buffer, "demonstrations", None) is None:
            raise FileNotFoundError(
                f"The demonstrations that this model was trained with are not here ({self._missing_demonstrations}). "
                "Call model.replay_buffer.set_demonstrations(...), or load() with replay_buffer_kwargs={} to go on "
                "without any"
            )
        if reset_num_timesteps or self._last_obs is None:
            self._restart_episodes()
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        first = self._last_obs if self._vec_normalize_env is None else self._vec_normalize_env.get_original_obs()
        check_finite(first, self.num_timesteps)  # type: ignore[arg-type]
        return result

    def _restart_episodes(self) -> None:
        """Called when the environments are about to be reset: nothing may run on from the episodes that were open."""
        if isinstance(self.replay_buffer, DemonstrationReplayBuffer):
            self.replay_buffer.truncate_last_trajectory()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        :param env: The environment to learn in from now on
        :param force_reset: Reset it before learning goes on
        """
        super().set_env(env, force_reset)
        if isinstance(self.replay_buffer, DemonstrationReplayBuffer) and self.env is not None:
            self.replay_buffer.set_env(self.env)

    def learn(
        self: SelfDemonstrationAlgorithm,
        total_timesteps: int | float,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDemonstrationAlgorithm:
        """
        :param total_timesteps: Environment steps, also as a float such as 1e6
        :param callback: SB3 callback(s)
        :param log_interval: Episodes between two logs
        :param tb_log_name: Name of the TensorBoard run, the class's name when omitted
        :param reset_num_timesteps: False to continue the time steps of an earlier call
        :param progress_bar: Show a progress bar
        """
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(int(total_timesteps), callback, log_interval, name, reset_num_timesteps, progress_bar)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save as SB3 does, but replace an existing file only once the new one is complete. The file has the
        demonstrations that the replay buffer has now, wherever it got them: an id or a path is read again at ``load``,
        others are in the file.

        :param path: Path (".zip" is added where there is no suffix) or open file
        :param exclude: Names of attributes to leave out
        :param include: Names of attributes to keep in spite of the defaults
        """
        buffer = getattr(self, "replay_buffer", None)  # which some delete first, to save memory
        if isinstance(buffer, DemonstrationReplayBuffer):
            arguments = buffer.demonstration_arguments
            if arguments:
                self._missing_demonstrations = None
            # Those that are missing here may be there where the file is loaded
            if self._missing_demonstrations is None:
                kept = {k: v for k, v in self.replay_buffer_kwargs.items() if k not in _DEMONSTRATION_ARGUMENTS}
                self.replay_buffer_kwargs = kept | arguments
        super().save(path, exclude, include)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save as SB3 does, but replace an existing file only once the new one is complete.

        :param path: Path (".pkl" is added where there is no suffix) or open file
        """
        if not isinstance(path, (str, pathlib.Path)):
            return super().save_replay_buffer(path)
        path = pathlib.Path(path)
        with atomic_path(path if path.suffix else path.with_suffix(".pkl")) as temporary:
            super().save_replay_buffer(temporary)

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        As SB3's; a file whose entropy coefficient was learned fits a model whose coefficient is fixed, and the reverse,
        so that ``load(path, ent_coef=...)`` works.

        :param load_path_or_dict: File, or its parameters
        :param exact_match: Whether all other parameters must be there, and no more
        :param device: Device to load to
        """
        if isinstance(load_path_or_dict, dict):
            load_path_or_dict = dict(load_path_or_dict)
            theirs = load_path_or_dict.pop("ent_coef_optimizer", None)
            if self.ent_coef_optimizer is not None:
                load_path_or_dict["ent_coef_optimizer"] = theirs or self.ent_coef_optimizer.state_dict()
        super().set_parameters(load_path_or_dict, exact_match, device)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        :param path: Path to the pickled replay buffer
        :param truncate_last_traj: Whether the episode that was being recorded ends there
        """
        super().load_replay_buffer(path, truncate_last_traj)
        if isinstance(self.replay_buffer, DemonstrationReplayBuffer):
            if self.env is not None:
                self.replay_buffer.set_env(self.env)
            if truncate_last_traj:
                self.replay_buffer.truncate_last_trajectory()

    def _excluded_save_params(self) -> list[str]:
        temperature = ["log_ent_coef", "ent_coef_optimizer"]  # saved as tensors, where they are used
        return [*super()._excluded_save_params(), *temperature, "_demonstrations_required", "_missing_demonstrations"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        if self.ent_coef_optimizer is not None:
            return ["ent_coef_optimizer"], ["log_ent_coef"]
        return [], []
