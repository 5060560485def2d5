"""
Videos of recorded actions, made in a process of its own: where OpenGL is missing or broken, only that process dies.

Record with :class:`ActionRecorder`, film with :func:`film`. Run as a script it renders one recording.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

SIZE = 320  # pixels, width and height of one picture
FRAMES_PER_SECOND = 25
CAMERA = {"distance": 1.3, "azimuth": 132.0, "elevation": -20.0, "lookat": np.array([1.3, 0.75, 0.55])}
HOW_TO_ENABLE = "apt-get install libosmesa6 && MUJOCO_GL=osmesa"


class ActionRecorder(gym.Wrapper):
    """
    Keep each episode's actions: with its seed, all it takes to play a MuJoCo episode again.

    :param env: the environment
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.actions: list[list[np.ndarray]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin another recording; without a seed it could not be played again, so that is an error."""
        if seed is None:
            raise ValueError("ActionRecorder needs reset(seed=...): an episode without one cannot be played again")
        self.actions.append([])
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Record the action and pass it on."""
        self.actions[-1].append(np.array(action))
        return super().step(action)


def film(env_id: str, seeds: Sequence[int], takes: dict[str, list[list[np.ndarray]]], path: Path) -> str | None:
    """
    Film recorded episodes, the takes side by side.

    :param env_id: id of the environment
    :param seeds: each episode's seed
    :param takes: actions by caption: a list of episodes, each a list of actions
    :param path: the ``.mp4`` file to write; the recording is kept beside it as ``.npz``
    :return: None if the video is there, else why it is not and what would enable it
    """
    recording = path.with_suffix(".npz")
    arrays = {f"{caption}/{i}": np.stack(episode) for caption, take in takes.items() for i, episode in enumerate(take)}
    np.savez(recording, env_id=env_id, seeds=seeds, captions=list(takes), **arrays)  # type: ignore[arg-type]
    command = [sys.executable, str(Path(__file__).resolve()), str(recording), str(path)]
    path.unlink(missing_ok=True)  # an older run's video must not pass for this one's
    said = ""
    # MuJoCo picks OpenGL's backend when it is imported, hence one process for each try.
    for backend in [os.environ["MUJOCO_GL"]] if os.environ.get("MUJOCO_GL") else ["egl", "osmesa"]:
        environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        try:
            process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            said = f"MUJOCO_GL={backend}: no picture within 5 minutes"
            continue
        if process.returncode == 0 and path.exists():
            return None
        said = f"MUJOCO_GL={backend}: {(process.stderr.strip().splitlines() or ['no message'])[-1]}"
    return f"{said}. To make it: {HOW_TO_ENABLE} {' '.join(command)}"


def render(recording: Path, path: Path) -> None:
    """
    Play a recording again and write the video.

    :param recording: what :func:`film` recorded
    :param path: the ``.mp4`` file to write
    """
    import imageio.v2 as imageio
    from PIL import Image, ImageDraw

    from sb3_swfp.files import atomic_path

    def captioned(picture: np.ndarray, caption: str, success: bool) -> np.ndarray:
        image = Image.fromarray(picture)
        ImageDraw.Draw(image).text((8, 6), f"{caption}{': success' if success else ''}", fill="white")
        return np.asarray(image)

    def pictures(seed: int, actions: np.ndarray, caption: str) -> list[np.ndarray]:
        env.reset(seed=seed)
        shots = []
        for action in actions:
            info = env.step(action)[-1]
            success = bool(info.get("is_success", info.get("success", False)))
            shots.append(captioned(np.asarray(env.render()), caption, success))
        return shots

    with np.load(recording, allow_pickle=False) as data:
        env = _make_env(str(data["env_id"]))
        with atomic_path(path) as temporary, imageio.get_writer(temporary, fps=FRAMES_PER_SECOND) as writer:
            for i, seed in enumerate(data["seeds"]):
                takes = [pictures(int(seed), data[f"{caption}/{i}"], str(caption)) for caption in data["captions"]]
                longest = max(map(len, takes))
                for k in range(longest):
                    side_by_side = np.concatenate([shots[min(k, len(shots) - 1)] for shots in takes], axis=1)
                    writer.append_data(side_by_side)  # type: ignore[attr-defined]
        env.close()


def _make_env(env_id: str) -> gym.Env:
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    env = gym.make(env_id, render_mode="rgb_array", width=SIZE, height=SIZE)
    # The cube is 5 cm wide; from the environment's own camera it is a dot.
    env.unwrapped.mujoco_renderer.default_cam_config = CAMERA  # type: ignore[attr-defined]
    return env


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render a recording of the demo as a video.")
    parser.add_argument("recording", type=Path, help="the .npz file that the demo wrote")
    parser.add_argument("video", type=Path, help="the .mp4 file to write")
    arguments = parser.parse_args()
    render(arguments.recording, arguments.video)
