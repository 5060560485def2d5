"""
The main job, 7 to 18 minutes on two cores: FetchPickAndPlace from scripted demonstrations, cloned, then fine-tuned.

``make demo``, or ``python examples/demo.py``. What it writes, and where, it says at the end.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from common import curve_table, normalized_env, plot_curve, save_model
from replay_video import ActionRecorder, film
from scripted_fetch import ENV_ID, collect_demonstrations, make_env
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import CallbackList

from sb3_swfp import SWFP, DemonstrationReplayBuffer
from sb3_swfp.callbacks import AtomicCheckpointCallback, SuccessEvalCallback
from sb3_swfp.demonstrations import Demonstrations
from sb3_swfp.evaluation import evaluate_success

# Everything that one may want to turn. "swfp" goes to SWFP(...) as it is.
SETTINGS: dict[str, Any] = {
    "demonstrations": 50,
    "clumsiness": 0.4,  # of the teacher: about 3 of 4 of its episodes succeed
    "demonstration_share": 0.5,
    "pretrain_steps": 4_000,
    "online_steps": 10_000,
    "eval_every": 2_000,
    "eval_episodes": 50,
    "film_episodes": 4,
    "swfp": {
        "learning_rate": 3e-4,
        "buffer_size": 100_000,
        "batch_size": 256,
        "gamma": 0.98,
        "gradient_steps": 2,
        "policy_delay": 4,  # twice the critic updates, the same pace of the policy
        "ent_coef": 0.0,  # the clone brings its own spread, and the trust region keeps it
    },
}


def main() -> None:
    """Run the stages one after the other."""
    arguments = parse_arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)  # these networks are so small that a second thread costs more than it brings
    started = time.monotonic()

    print(f"1/5  A scripted, imperfect teacher plays {arguments.demonstrations} episodes of {ENV_ID}")
    demonstrations = collect_demonstrations(arguments.demonstrations, arguments.seed, SETTINGS["clumsiness"])
    demonstrations.save(out / "demonstrations.npz")

    print("2/5  Cloning the teacher: flow matching, all flow blocks at once")
    model = make_model(demonstrations, out, arguments.seed)
    model.pretrain(gradient_steps=SETTINGS["pretrain_steps"], progress_bar=True)
    save_model(model, out / "clone.zip")
    before = record_actions(model)

    print(f"3/5  Fine-tuning for {arguments.steps:,} steps (TensorBoard: tensorboard --logdir {out / 'tensorboard'})")
    evaluation = fine_tune(model, arguments.steps, out)
    save_model(model, out / "model.zip")

    print("4/5  Drawing the learning curve")
    teacher, episodes = demonstrations.success_rate(), SETTINGS["eval_episodes"]
    no_picture = plot_curve(evaluation.points, episodes, ENV_ID, out / "learning_curve.png", teacher)
    if no_picture:
        print(f"     No picture (everything else is there): {no_picture}")

    print("5/5  Filming clone and fine-tuned policy side by side")
    seeds = list(range(evaluation.seed, evaluation.seed + SETTINGS["film_episodes"]))
    no_video = film(ENV_ID, seeds, {"clone": before, "fine-tuned": record_actions(model)}, out / "before_and_after.mp4")
    if no_video:
        print(f"     No video (everything else is there): {no_video}")

    minutes = (time.monotonic() - started) / 60
    print(f"\nSuccess over {episodes} fixed episodes (of the demonstrations, {teacher:.0%} succeed)")
    print(curve_table(evaluation.points))
    print(f"\nDone in {minutes:.1f} minutes. Saved in {out}:")
    missing = {"learning_curve.png": no_picture, "before_and_after.mp4": no_video}
    print(describe_files(out, [name for name, reason in missing.items() if reason]))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=SETTINGS["online_steps"], help="environment steps of fine-tuning")
    parser.add_argument("--demonstrations", type=int, default=SETTINGS["demonstrations"], help="episodes to collect")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all results")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.demonstrations) < 1:
        parser.error("--steps and --demonstrations must be at least 1")
    return arguments


def make_model(demonstrations: Demonstrations, out: Path, seed: int) -> SWFP:
    """Make SWFP as SB3's algorithms are made; the demonstrations come in through the replay buffer."""
    return SWFP(
        "FlowPolicy",
        normalized_env(make_env, demonstrations, seed),
        replay_buffer_class=DemonstrationReplayBuffer,
        replay_buffer_kwargs={
            "demonstrations": demonstrations,
            "demonstration_share": SETTINGS["demonstration_share"],
            # Hindsight goals: every episode teaches the critic how to reach some goal
            "online_buffer_class": HerReplayBuffer,
        },
        tensorboard_log=str(out / "tensorboard"),
        seed=seed,
        **SETTINGS["swfp"],
    )


def fine_tune(model: SWFP, steps: int, out: Path) -> SuccessEvalCallback:
    """Fine-tune online; the evaluation before the first step is the clone's."""
    evaluation = SuccessEvalCallback(
        make_env,
        eval_freq=SETTINGS["eval_every"],
        n_eval_episodes=SETTINGS["eval_episodes"],
        history_path=out / "learning_curve.csv",
        best_model_save_path=out / "best",
    )
    checkpoints = AtomicCheckpointCallback(
        SETTINGS["eval_every"], out / "checkpoints", "swfp", save_vecnormalize=True, keep_last=2
    )
    model.learn(steps, callback=CallbackList([evaluation, checkpoints]), progress_bar=True)
    return evaluation


def record_actions(model: SWFP) -> list[list[np.ndarray]]:
    """Play the first evaluation episodes and keep their actions, for the video."""
    recorder = ActionRecorder(make_env())
    evaluate_success(model, recorder, SETTINGS["film_episodes"])
    recorder.close()
    return recorder.actions


def describe_files(out: Path, missing: Sequence[str]) -> str:
    """List what was written, without what is ``missing``."""
    files = {
        "learning_curve.png": "success over environment steps, clone and demonstrations beside it",
        "learning_curve.csv": "the same in numbers",
        "before_and_after.mp4": "clone and fine-tuned policy, same initial states",
        "model.zip": "the fine-tuned policy: SWFP.load(...) (observation statistics in model_vecnormalize.pkl)",
        "clone.zip": "the clone",
        "best/": "the model of the best evaluation",
        "checkpoints/": "the last two checkpoints",
        "demonstrations.npz": "the demonstrations: load_demonstrations(...)",
        "tensorboard/": "logs: tensorboard --logdir " + str(out / "tensorboard"),
    }
    return "\n".join(f"  {out / name!s:<42} {what}" for name, what in files.items() if name not in missing)


if __name__ == "__main__":
    main()
