"""SWFP's search space for RL Zoo's ``-optimize``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

_CRITIC_ARCHITECTURES = {"small": [64, 64], "medium": [256, 256], "big": [400, 300], "large": [256, 256, 256]}


def sample_swfp_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    One point of the search space. If the trial has demonstrations, their share, candidates in the target, and whether
    there is entropy at all are searched too; hindsight goals if its buffer is SB3's ``HerReplayBuffer``.

    :param trial: Optuna's trial
    :param n_actions: Dimension of the actions (the Zoo passes it; SWFP doesn't need it)
    :param n_envs: Environments side by side (likewise)
    :param additional_args: The Zoo's: ``using_her_replay_buffer``, and ``her_kwargs``, which are the configured
        ``replay_buffer_kwargs`` whatever the buffer is
    :return: Arguments of SWFP
    """
    buffer_kwargs = dict(additional_args.get("her_kwargs") or {})
    sampled: dict[str, Any] = {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.05, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 2e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 9),
        "tau": trial.suggest_float("tau", 2e-3, 0.02, log=True),
        "gradient_steps": trial.suggest_int("gradient_steps", 1, 4),
        "policy_delay": trial.suggest_int("policy_delay", 1, 4),
        "jko_target": trial.suggest_float("jko_target", 3e-4, 0.1, log=True),
        "jko_epoch": trial.suggest_categorical("jko_epoch", [20, 50, 100]),
        "initial_temperature": trial.suggest_float("initial_temperature", 1e-3, 1.0, log=True),
        "n_blocks": trial.suggest_int("n_blocks", 1, 10),
        "block_width": trial.suggest_categorical("block_width", [32, 64, 128]),
        "n_critics": trial.suggest_int("n_critics", 2, 5),
        "n_candidates": trial.suggest_categorical("n_candidates", [1, 4, 8, 16]),
        "net_arch": trial.suggest_categorical("net_arch", list(_CRITIC_ARCHITECTURES)),
    }
    if "demonstrations" in buffer_kwargs:
        sampled["demonstration_share"] = trial.suggest_float("demonstration_share", 0.1, 0.75)
        sampled["target_candidates"] = trial.suggest_categorical("target_candidates", [1, 2, 4])
        sampled["with_entropy"] = trial.suggest_categorical("with_entropy", [False, True])
    if additional_args.get("using_her_replay_buffer"):
        sampled["n_sampled_goal"] = trial.suggest_int("n_sampled_goal", 1, 5)
        strategies = ["final", "episode", "future"]
        sampled["goal_selection_strategy"] = trial.suggest_categorical("goal_selection_strategy", strategies)
    converted = convert_swfp_params(sampled)
    if "replay_buffer_kwargs" in converted:
        converted["replay_buffer_kwargs"] = buffer_kwargs | converted["replay_buffer_kwargs"]
    return converted


def convert_swfp_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Sampled parameters, as a study stores them, to arguments of SWFP.

    :param sampled_params: Names and values of a trial
    :return: Arguments of SWFP; ``replay_buffer_kwargs`` holds only what was sampled
    """
    params = dict(sampled_params)
    # As jko_step_size="auto" has it: a clone's movement decays
    movement = "auto_lin" if "demonstration_share" in params else "auto"
    temperature = f"auto_{params.pop('initial_temperature'):.6g}"
    converted: dict[str, Any] = {
        "gamma": 1.0 - params.pop("one_minus_gamma"),
        "batch_size": 2 ** params.pop("batch_size_pow"),
        "jko_step_size": f"{movement}_{params.pop('jko_target'):.6g}",
        "ent_coef": temperature if params.pop("with_entropy", True) else 0.0,
        "policy_kwargs": {
            "n_blocks": params.pop("n_blocks"),
            "block_net_arch": [params.pop("block_width")] * 2,
            "n_critics": params.pop("n_critics"),
            "n_candidates": params.pop("n_candidates"),
            "net_arch": _CRITIC_ARCHITECTURES[params.pop("net_arch")],
        },
    }
    of_the_buffer = ("demonstration_share", "n_sampled_goal", "goal_selection_strategy")
    buffer_kwargs = {name: params.pop(name) for name in of_the_buffer if name in params}
    if buffer_kwargs:
        converted["replay_buffer_kwargs"] = buffer_kwargs
    return converted | params
