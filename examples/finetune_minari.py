"""
Clone a few real demonstrations of a Minari data set and fine-tune the clone online with SWFP.

    python examples/finetune_minari.py --task door --seed 0
    python examples/finetune_minari.py --task D4RL/pen/human-v2 --env AdroitHandPen-v1 --demonstrations 10

Minari looks for data sets in ~/.minari/datasets, or where MINARI_DATASETS_PATH says. The environment must be the one
whose rewards were recorded. What door, pen and door-human need is made by `python -m benchmarks demonstrations`
(docs/demonstrations.md).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from common import curve_table, plot_curve, save_model
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env

from sb3_swfp import SWFP, DemonstrationReplayBuffer, load_demonstrations
from sb3_swfp.callbacks import AtomicCheckpointCallback, SuccessEvalCallback
from sb3_swfp.demonstrations import Demonstrations

# Everything that one may want to turn. "swfp" goes to SWFP(...) as it is, together with the task's own settings.
SETTINGS: dict[str, Any] = {
    "pretrain_steps": 3_000,
    "eval_episodes": 50,
    "swfp": {
        "learning_rate": 3e-4,
        "batch_size": 256,
        "gamma": 0.99,
        "n_steps": 10,
        "ent_coef": 0.0,  # the clone brings its own spread, and the trust region keeps it
        "policy_kwargs": {"n_blocks": 10, "n_critics": 5},
    },
}

HOW_TO_MAKE = """Minari's server does not have it; to make it, from the repository's root:
    git clone https://github.com/aravindr93/hand_dapg ../hand_dapg
    python -m benchmarks demonstrations ../hand_dapg"""


@dataclass(frozen=True)
class Task:
    """
    What the short name of a task stands for.

    :param dataset: Minari id
    :param env: environment id
    :param demonstrations: how many episodes to use
    :param swfp: arguments of SWFP, on top of ``SETTINGS["swfp"]``
    """

    dataset: str
    env: str
    demonstrations: int
    swfp: dict[str, Any] = field(default_factory=dict)


TASKS = {
    "door": Task("adroit/door-expert-v0", "AdroitHandDoorSparse-v1", 10),
    # Every goal is another one, and half of these demonstrations hardly reach theirs: more is to be learned online
    "pen": Task("adroit/pen-expert-v0", "AdroitHandPenSparse-v1", 10, {"gradient_steps": 2, "policy_delay": 4}),
    "door-human": Task("adroit/door-human-v0", "AdroitHandDoorSparse-v1", 25),
}


def main() -> None:
    """Load, clone, fine-tune, report."""
    arguments = parse_arguments()
    task: Task = arguments.task
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)  # these networks are so small that a second thread costs more than it brings
    started = time.monotonic()
    try:
        demonstrations = load_demonstrations(task.dataset, n_episodes=task.demonstrations)
    except (FileNotFoundError, ImportError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and task.dataset.startswith("adroit/"):
            raise SystemExit(f"No Minari data set {task.dataset}. {HOW_TO_MAKE}") from error
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    success = demonstrations.success_rate()
    teacher = "success not recorded" if success is None else f"success {success:.0%}"
    print(f"{len(demonstrations)} episodes of {task.dataset}, {demonstrations.n_transitions:,} steps, {teacher}")

    model = make_model(task, demonstrations, out, arguments.seed)
    model.pretrain(gradient_steps=SETTINGS["pretrain_steps"], progress_bar=True)
    save_model(model, out / "clone.zip")
    evaluation = SuccessEvalCallback(
        lambda: make_env(task.env),
        eval_freq=arguments.eval_every,
        n_eval_episodes=SETTINGS["eval_episodes"],
        history_path=out / "learning_curve.csv",
        best_model_save_path=out / "best",
    )
    checkpoints = AtomicCheckpointCallback(arguments.eval_every, out / "checkpoints", "swfp", keep_last=2)
    model.learn(arguments.steps, callback=CallbackList([evaluation, checkpoints]), progress_bar=True)
    save_model(model, out / "model.zip")
    title = f"{task.env}, {len(demonstrations)} demonstrations, seed {arguments.seed}"
    no_picture = plot_curve(evaluation.points, SETTINGS["eval_episodes"], title, out / "learning_curve.png", success)
    if no_picture:
        print(f"No picture (everything else is there): {no_picture}")
    print(f"\n{title}: success over {SETTINGS['eval_episodes']} fixed episodes")
    print(curve_table(evaluation.points))
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Curve, models and logs are in {out}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line; ``task`` comes back as a :class:`Task`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="door", help=f"{', '.join(TASKS)}, or a Minari id together with --env")
    parser.add_argument("--env", help="environment id (default: the task's)")
    parser.add_argument("--demonstrations", type=int, help="episodes to use (default: 10; door-human: 25)")
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps of fine-tuning (default: 30,000)")
    parser.add_argument("--eval-every", type=int, default=3_000, help="steps between evaluations (default: 3,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    parser.add_argument("--out", type=Path, help="folder for all results (default: runs/<task>-seed<seed>)")
    arguments = parser.parse_args()
    if arguments.task not in TASKS and arguments.env is None:
        parser.error(f"--task {arguments.task} is not one of {', '.join(TASKS)}: a Minari id needs --env beside it")
    known = TASKS.get(arguments.task, Task(arguments.task, arguments.env, 10))
    if arguments.out is None:
        arguments.out = Path("runs") / f"{arguments.task.replace('/', '-')}-seed{arguments.seed}"
    count = known.demonstrations if arguments.demonstrations is None else arguments.demonstrations
    if min(count, arguments.steps, arguments.eval_every) < 1:
        parser.error("--demonstrations, --steps and --eval-every must be at least 1")
    arguments.task = replace(known, env=arguments.env or known.env, demonstrations=count)
    return arguments


def make_env(env_id: str) -> gym.Env:
    """
    Make an environment of gymnasium-robotics or any other that is registered.

    :param env_id: environment id
    :return: the environment
    """
    try:
        import gymnasium_robotics
    except ImportError:
        pass  # the environment may well be another package's; gymnasium says so if it does not know it
    else:
        gym.register_envs(gymnasium_robotics)
    return gym.make(env_id)


def make_model(task: Task, demonstrations: Demonstrations, out: Path, seed: int) -> SWFP:
    """Make SWFP as SB3's algorithms are made; the demonstrations come in through the replay buffer."""
    return SWFP(
        "FlowPolicy",
        # Not normalised: with the deviations of 10 demonstrations as scales, pen learned less (docs/experiments.md)
        make_vec_env(lambda: make_env(task.env), n_envs=1, seed=seed),
        replay_buffer_class=DemonstrationReplayBuffer,
        replay_buffer_kwargs={"demonstrations": demonstrations},
        tensorboard_log=str(out / "tensorboard"),
        seed=seed,
        **(SETTINGS["swfp"] | task.swfp),
    )


if __name__ == "__main__":
    main()
