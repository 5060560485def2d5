"""
Search spaces for RL Zoo's ``-optimize``: a sampler draws a trial's parameters, a converter makes arguments of them.

Left out is what makes a baseline what it is: RLPD's and IBRL's updates per step, and DPPO's lengths of roll-outs, which
depend on the number of environments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

Params = dict[str, Any]

_CRITIC_ARCHITECTURES = {"small": [64, 64], "medium": [256, 256], "big": [400, 300], "large": [256, 256, 256]}
_OF_THE_BUFFER = ("demonstration_share", "n_sampled_goal", "goal_selection_strategy")
_OF_THE_POLICY = ("n_blocks", "n_critics", "n_candidates", "beta")


def _sampler(
    sample: Callable[[optuna.Trial, bool], Params], convert: Callable[[Params], Params]
) -> Callable[[optuna.Trial, int, int, Params], Params]:
    """
    A sampler as the Zoo calls it.

    :param sample: Draws parameters; its second argument says whether there are demonstrations in the buffer
    :param convert: Makes arguments of them
    :return: Function of the trial, the dimension of the actions, the number of environments (neither is needed), and
        the Zoo's ``using_her_replay_buffer`` and ``her_kwargs``, which are the configured ``replay_buffer_kwargs``
        whatever the buffer is. It returns arguments of the algorithm
    """

    def sampler(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Params) -> Params:
        buffer_kwargs = dict(additional_args.get("her_kwargs") or {})
        sampled = sample(trial, "demonstrations" in buffer_kwargs)
        if additional_args.get("using_her_replay_buffer"):
            sampled["n_sampled_goal"] = trial.suggest_int("n_sampled_goal", 1, 5)
            strategies = ["final", "episode", "future"]
            sampled["goal_selection_strategy"] = trial.suggest_categorical("goal_selection_strategy", strategies)
        converted = convert(sampled)
        if "replay_buffer_kwargs" in converted:
            converted["replay_buffer_kwargs"] = buffer_kwargs | converted["replay_buffer_kwargs"]
        return converted

    return sampler


def _sample_off_policy(trial: optuna.Trial) -> Params:
    return {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.05, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 2e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 9),
        "tau": trial.suggest_float("tau", 2e-3, 0.02, log=True),
        "net_arch": trial.suggest_categorical("net_arch", list(_CRITIC_ARCHITECTURES)),
    }


def _sample_flow(trial: optuna.Trial, with_demonstrations: bool) -> Params:
    """With demonstrations their share, candidates in the target, and whether there is entropy at all are searched."""
    sampled = _sample_off_policy(trial) | {
        "gradient_steps": trial.suggest_int("gradient_steps", 1, 4),
        "policy_delay": trial.suggest_int("policy_delay", 1, 4),
        "initial_temperature": trial.suggest_float("initial_temperature", 1e-3, 1.0, log=True),
        "n_blocks": trial.suggest_int("n_blocks", 1, 10),
        "block_width": trial.suggest_categorical("block_width", [32, 64, 128]),
        "n_critics": trial.suggest_int("n_critics", 2, 5),
        "n_candidates": trial.suggest_categorical("n_candidates", [1, 4, 8, 16]),
        "noise_correlation": trial.suggest_categorical("noise_correlation", [0.0, 0.5, 0.9]),
    }
    if with_demonstrations:
        sampled["demonstration_share"] = trial.suggest_float("demonstration_share", 0.05, 0.75)
        sampled["target_candidates"] = trial.suggest_categorical("target_candidates", [1, 4, "auto"])
        sampled["with_entropy"] = trial.suggest_categorical("with_entropy", [False, True])
    return sampled


def _sample_swfp(trial: optuna.Trial, with_demonstrations: bool) -> Params:
    sampled = _sample_flow(trial, with_demonstrations) | {
        "jko_target": trial.suggest_float("jko_target", 3e-4, 0.3, log=True),
        "jko_epoch": trial.suggest_categorical("jko_epoch", [5, 10, 20, 50]),
    }
    if with_demonstrations:
        sampled["confined"] = trial.suggest_categorical("confined", [False, True])
    return sampled


def _sample_swfp_kl(trial: optuna.Trial, with_demonstrations: bool) -> Params:
    return _sample_flow(trial, with_demonstrations) | {
        "kl_step": trial.suggest_float("kl_step", 5e-4, 0.5, log=True),
        "kl_epoch": trial.suggest_categorical("kl_epoch", [20, 50, 100]),
    }


def _sample_gaussian(trial: optuna.Trial, with_demonstrations: bool) -> Params:
    sampled = _sample_off_policy(trial)
    if with_demonstrations:
        sampled["demonstration_share"] = trial.suggest_float("demonstration_share", 0.1, 0.75)
    return sampled


def _sample_calql(trial: optuna.Trial, with_demonstrations: bool) -> Params:
    cql_weight = trial.suggest_float("cql_weight", 0.1, 10.0, log=True)
    return _sample_gaussian(trial, with_demonstrations) | {"cql_weight": cql_weight}


def _sample_ibrl(trial: optuna.Trial, with_demonstrations: bool) -> Params:
    # Its buffer mixes demonstrations in by their number
    return _sample_off_policy(trial) | {"beta": trial.suggest_float("beta", 1.0, 100.0, log=True)}


def _sample_dppo(trial: optuna.Trial, with_demonstrations: bool) -> Params:
    return {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.1, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.1, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 9),
        "n_epochs": trial.suggest_categorical("n_epochs", [5, 10, 20]),
        "clip_range": trial.suggest_float("clip_range", 3e-3, 0.3, log=True),
        "sampling_std": trial.suggest_float("sampling_std", 0.02, 0.4, log=True),
        "net_arch": trial.suggest_categorical("net_arch", list(_CRITIC_ARCHITECTURES)),
    }


def _convert(sampled: Params) -> Params:
    """
    Sampled parameters, as a study stores them, to arguments.

    :param sampled: Names and values of a trial
    :return: Arguments; ``replay_buffer_kwargs`` holds only what was sampled
    """
    params = dict(sampled)
    policy_kwargs: Params = {"net_arch": _CRITIC_ARCHITECTURES[params.pop("net_arch")]}
    if "block_width" in params:
        policy_kwargs["block_net_arch"] = [params.pop("block_width")] * 2
    policy_kwargs |= {name: params.pop(name) for name in _OF_THE_POLICY if name in params}
    converted: Params = {
        "gamma": 1.0 - params.pop("one_minus_gamma"),
        "batch_size": 2 ** params.pop("batch_size_pow"),
        "policy_kwargs": policy_kwargs,
    }
    if "initial_temperature" in params:
        temperature = f"auto_{params.pop('initial_temperature'):.6g}"
        converted["ent_coef"] = temperature if params.pop("with_entropy", True) else 0.0
    if "gradient_steps" in params:
        converted["train_freq"] = 1  # what was sampled is the number of updates a step, whatever the entry's train_freq
    buffer_kwargs = {name: params.pop(name) for name in _OF_THE_BUFFER if name in params}
    if buffer_kwargs:
        converted["replay_buffer_kwargs"] = buffer_kwargs
    return converted | params


def _convert_swfp(sampled: Params) -> Params:
    converted = _convert(sampled)
    # As jko_step_size="auto" has it: a clone's movement decays
    movement = "auto_lin" if "demonstration_share" in sampled else "auto"
    return converted | {"jko_step_size": f"{movement}_{converted.pop('jko_target'):.6g}"}


def _convert_swfp_kl(sampled: Params) -> Params:
    converted = _convert(sampled)
    # As kl_step="auto" has it, likewise
    nats = converted["kl_step"]
    return converted | {"kl_step": f"lin_{nats:.6g}" if "demonstration_share" in sampled else nats}


def _convert_dppo(sampled: Params) -> Params:
    converted = _convert(sampled)
    sampling_std = converted.pop("sampling_std")
    return converted | {
        "gae_lambda": 1.0 - converted.pop("one_minus_gae_lambda"),
        "clip_range_base": 0.1 * converted["clip_range"],  # the published ratio
        "min_sampling_std": sampling_std,
        "min_logprob_std": sampling_std,
    }


#: Of each algorithm, for the Zoo's ``HYPERPARAMS_CONVERTER``
CONVERTERS: dict[str, Callable[[Params], Params]] = {
    "swfp": _convert_swfp,
    "swfp_kl": _convert_swfp_kl,
    "rlpd": _convert,
    "calql": _convert,
    "ibrl": _convert,
    "dppo": _convert_dppo,
    "clone_sac": _convert,
}
#: Of each algorithm, for the Zoo's ``HYPERPARAMS_SAMPLER``
SAMPLERS = {
    "swfp": _sampler(_sample_swfp, _convert_swfp),
    "swfp_kl": _sampler(_sample_swfp_kl, _convert_swfp_kl),
    "rlpd": _sampler(_sample_gaussian, _convert),
    "calql": _sampler(_sample_calql, _convert),
    "ibrl": _sampler(_sample_ibrl, _convert),
    "dppo": _sampler(_sample_dppo, _convert_dppo),
    "clone_sac": _sampler(_sample_gaussian, _convert),
}
