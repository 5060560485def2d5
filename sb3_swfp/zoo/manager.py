"""RL Zoo's experiment manager, extended where it does not know this package. Other algorithms are left alone."""

from __future__ import annotations

import difflib
import functools
import inspect
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from gymnasium import spaces
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

import sb3_swfp
from sb3_swfp.callbacks import PretrainCallback
from sb3_swfp.demonstrations import DemonstrationReplayBuffer
from sb3_swfp.zoo.registration import ALGORITHMS, algorithm_class, config_path

#: What bad input raises: shown as one line instead of a traceback, unless ``--verbose 2`` asks for it. The Zoo
#: evaluates parts of an entry as Python, so names and syntax may be wrong in it
_INPUT_ERRORS = (
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    KeyError,
    NameError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    yaml.YAMLError,
    zipfile.BadZipFile,
)
#: Keys of a YAML entry that the Zoo turns into an algorithm's argument ``action_noise``
_MADE_INTO_NOISE = {"noise_type", "noise_std"}
#: A study knows what it sampled of ``replay_buffer_kwargs``, the YAML entry the rest
_SAMPLED_BUFFER_KWARGS = "sampled_replay_buffer_kwargs"


def extend(module: ModuleType) -> None:
    """
    Extend ``ExperimentManager`` in place, since other modules hold references to it.

    :param module: ``rl_zoo3.exp_manager``
    """
    manager: Any = module.ExperimentManager
    if getattr(manager, "knows_swfp", False):
        return
    manager.knows_swfp = True
    # The Zoo evaluates "replay_buffer_class: ..." with the names of this module
    module.DemonstrationReplayBuffer, module.sb3_swfp = DemonstrationReplayBuffer, sb3_swfp  # type: ignore[attr-defined]
    for name, wrap in (
        ("__init__", _default_config),
        ("load_trial", _keep_sampled_buffer_kwargs_apart),
        ("_preprocess_hyperparams", _check_hyperparams),
        ("create_envs", _check_action_space),
        ("_load_pretrained_agent", _check_agent),
        ("setup_experiment", _explain_errors),
    ):
        original = getattr(manager, name)
        setattr(manager, name, functools.wraps(original)(wrap(original)))


def hyperparameter_names(algorithm: type) -> set[str]:
    """
    Arguments of an algorithm's constructor, including those that it hands on to its parents by ``**kwargs``.

    :param algorithm: Class of the algorithm
    :return: Names, without what the Zoo never takes from a YAML entry
    """
    names: set[str] = set()
    for ancestor in inspect.getmro(algorithm):
        if "__init__" not in vars(ancestor):
            continue
        parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names |= {parameter.name for parameter in parameters if parameter.kind not in variable}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break  # nothing is handed on by name
    return names - {"self", "env", "_init_setup_model"}


def _default_config(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, args: Any, algo: str, *others: Any, **kwargs: Any) -> None:
        if algo in ALGORITHMS and kwargs.get("config") is None:
            # The Zoo would look into its own package
            kwargs["config"] = str(config_path(algo))
        original(self, args, algo, *others, **kwargs)

    return __init__


def _keep_sampled_buffer_kwargs_apart(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_trial(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            params = original(self, *args, **kwargs)
        except IndexError as error:
            raise ValueError(f"the study {self.study_name!r} has no trial {self.trial_id}") from error
        if self.algo in ALGORITHMS and "replay_buffer_kwargs" in params:
            # Under their own name they would replace the YAML entry's, and the demonstrations with them
            params[_SAMPLED_BUFFER_KWARGS] = params.pop("replay_buffer_kwargs")
        return params

    return load_trial


def _check_hyperparams(original: Callable[..., Any]) -> Callable[..., Any]:
    def _preprocess_hyperparams(self: Any, hyperparams: dict[str, Any]) -> Any:
        if self.algo not in ALGORITHMS:
            return original(self, hyperparams)
        sampled = hyperparams.pop(_SAMPLED_BUFFER_KWARGS, {})
        result = original(self, hyperparams)
        arguments: dict[str, Any] = result[0]
        if sampled:
            arguments["replay_buffer_kwargs"] = dict(arguments.get("replay_buffer_kwargs") or {}) | sampled
        algorithm = algorithm_class(self.algo)
        known = hyperparameter_names(algorithm)
        for key in arguments:
            if key not in known | (_MADE_INTO_NOISE if "action_noise" in known else set()):
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(known))}"
                raise ValueError(f"{algorithm.__name__} has no hyperparameter {key!r} ({self.config}): {hint}")
        return result

    return _preprocess_hyperparams


def _check_action_space(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_envs(self: Any, *args: Any, **kwargs: Any) -> Any:
        env = original(self, *args, **kwargs)
        if self.algo in ALGORITHMS and not isinstance(env.action_space, spaces.Box):
            env.close()
            raise ValueError(
                f"{algorithm_class(self.algo).__name__} needs continuous actions (a Box), {self.env_name.gym_id} has "
                f"{env.action_space}: take another environment, or another algorithm (--algo ppo, dqn, ...)"
            )
        return env

    return create_envs


def _check_agent(original: Callable[..., Any]) -> Callable[..., Any]:
    def _load_pretrained_agent(self: Any, hyperparams: dict[str, Any], env: Any) -> Any:
        if self.algo in ALGORITHMS:
            algorithm = algorithm_class(self.algo)
            data = load_from_zip_file(self.trained_agent, device="cpu")[0] or {}
            held, needed = data.get("policy_class"), tuple(algorithm.policy_aliases.values())
            if not (isinstance(held, type) and issubclass(held, needed)):
                name = getattr(held, "__name__", "nothing that SB3 saved")
                names = " or ".join(sorted({policy.__name__ for policy in needed}))
                raise ValueError(f"it holds {name}, {algorithm.__name__} needs {names}")
            _keep_the_files_buffer(hyperparams, data)
            if data.get("is_pretrained"):
                _check_statistics(unwrap_vec_normalize(env), self)
        model = original(self, hyperparams, env)
        if getattr(model, "_missing_demonstrations", None) is not None and model.replay_buffer.demonstrations is None:
            raise FileNotFoundError(
                f"the demonstrations it was trained with are missing: {model._missing_demonstrations}"
            )
        return model

    return _load_pretrained_agent


def _keep_the_files_buffer(hyperparams: dict[str, Any], data: dict[str, Any]) -> None:
    """``load()`` would forget the file's, which hold the demonstrations, where the YAML entry has its own."""
    held = data.get("replay_buffer_class")
    if held is None:
        return
    wanted, buffer_kwargs = hyperparams.get("replay_buffer_class"), hyperparams.get("replay_buffer_kwargs")
    kept = dict(data.get("replay_buffer_kwargs") or {})
    if issubclass(held, DemonstrationReplayBuffer) and not issubclass(wanted or held, DemonstrationReplayBuffer):
        # What the entry wants becomes the part for online data
        hyperparams["replay_buffer_class"] = held
        hyperparams["replay_buffer_kwargs"] = kept | {"online_buffer_class": wanted} | (buffer_kwargs or {})
    elif buffer_kwargs is not None and wanted in (None, held):
        hyperparams["replay_buffer_kwargs"] = kept | buffer_kwargs


def _check_statistics(normalize: VecNormalize | None, manager: Any) -> None:
    if normalize is None or not normalize.norm_obs:
        return
    statistics = normalize.obs_rms if isinstance(normalize.obs_rms, dict) else {"": normalize.obs_rms}
    if any(running.count < normalize.num_envs + 1.0 for running in statistics.values()):
        place = Path(manager.trained_agent).parent / manager.env_name / "vecnormalize.pkl"
        raise ValueError(
            f"it was pretrained, and would now see observations normalised by statistics that have seen no data: save "
            f"those it was pretrained with as {place} (VecNormalize.save), or train with -params normalize:False"
        )


def _example_of_a_study(manager: Any) -> Any:
    """A model with the hyperparameters that all trials of a study share."""
    env = manager.create_envs(1, no_log=True)
    try:
        return algorithm_class(manager.algo)(env=env, device=manager.device, **manager._hyperparams)
    finally:
        env.close()


def _explain_errors(original: Callable[..., Any]) -> Callable[..., Any]:
    def setup_experiment(self: Any) -> Any:
        if self.algo not in ALGORITHMS:
            return original(self)
        try:
            result = original(self)
            # What would fail at the first step, or in every trial of a study, fails where the user is still looking
            model = _example_of_a_study(self) if result is None else result[0]
            for callback in self.callbacks:
                if isinstance(callback, PretrainCallback):
                    callback.check(algorithm_class(self.algo), model)
            return result
        except _INPUT_ERRORS as error:
            if self.verbose >= 2:
                raise
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if self.continue_training:
                message = f"cannot continue from {self.trained_agent}: {message}"
            raise SystemExit(f"{self.algo}: {message}\n(--verbose 2 shows where it happened)") from error

    return setup_experiment
