"""
A scripted, deliberately varied and imperfect teacher for FetchPickAndPlace, and demonstrations by it.

Every episode is played in a style of its own (how fast, from which side, how high, lifting before moving or not, where
the fingers close) that the observation does not tell, with noise that lasts and pauses. So the action is not a
function of the observation: a clone has to model a distribution. The teacher also grasps badly at times and then
tries again, and does not always get there within the 50 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from tqdm.auto import tqdm

from sb3_swfp.demonstrations import Demonstrations, Episode

ENV_ID = "FetchPickAndPlace-v4"

# The environment moves the gripper by 5 cm for an action of 1, and its cube is 5 cm wide: its centre within 2 cm of
# the gripper's is between the fingers, further than 4 cm away it has been lost.
GRASPED_WITHIN, LOST_BEYOND = 0.02, 0.04  # metres
CLOSING_STEPS = 3  # steps that the fingers need to close around the cube
OPEN, CLOSED = 1.0, -1.0


def make_env(render_mode: str | None = None) -> gym.Env:
    """
    Make the demo's environment.

    :param render_mode: ``"rgb_array"`` for videos
    :return: FetchPickAndPlace with its dictionary observations and sparse rewards (-1, or 0 at the goal)
    :raises ImportError: if gymnasium-robotics is not installed
    """
    try:
        import gymnasium_robotics
    except ImportError as error:
        raise ImportError('FetchPickAndPlace needs gymnasium-robotics: pip install "sb3-swfp[robotics]"') from error
    gym.register_envs(gymnasium_robotics)
    return gym.make(ENV_ID, render_mode=render_mode)


@dataclass(frozen=True)
class Style:
    """
    How one episode is played.

    :param gain: action per metre of error (20 would be one step to the target)
    :param approach: point above the cube to go to first, relative to it, metres [3]
    :param grasp: where the gripper's centre is when it closes, relative to the cube's, metres [3]
    :param lift_first: height to lift the cube by before it moves sideways, metres (0: straight to the goal)
    :param noise: standard deviation of the correlated noise on the motion, in action units
    :param pause: probability a step that the arm rests for a few steps
    """

    gain: float
    approach: np.ndarray
    grasp: np.ndarray
    lift_first: float
    noise: float
    pause: float

    @classmethod
    def sample(cls, rng: np.random.Generator, clumsiness: float) -> Style:
        """
        Draw a style.

        :param rng: source of randomness
        :param clumsiness: scales noise, pauses and misplaced grasps; 0 is a sure hand
        :return: the style
        """
        side = rng.uniform(-0.05, 0.05, size=2)
        return cls(
            gain=rng.uniform(2.0, 14.0),
            approach=np.array([*side, rng.uniform(0.05, 0.13)]),
            grasp=clumsiness * rng.normal(scale=[0.012, 0.006, 0.009]),
            lift_first=rng.choice([0.0, rng.uniform(0.05, 0.2)]),
            noise=clumsiness * rng.uniform(0.05, 0.3),
            pause=clumsiness * rng.uniform(0.0, 0.06),
        )


class ScriptedPickAndPlace:
    """
    Approach from above, descend, grasp, carry, hold; from the start again when the cube has been lost.

    :param style: how to play this episode
    :param rng: source of the noise and the pauses
    """

    def __init__(self, style: Style, rng: np.random.Generator) -> None:
        self.style = style
        self.rng = rng
        self._phase = "approach"
        self._closing = 0
        self._lift_to = 0.0
        self._noise = np.zeros(3)
        self._resting = 0

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """
        Decide on one action.

        :param observation: the environment's observation
        :return: gripper motion and finger command, each in [-1, 1], float32 [4]
        """
        gripper, cube = observation["observation"][:3], observation["achieved_goal"]
        target, fingers = self._target(gripper, cube, observation["desired_goal"])
        # Noise that lasts about 5 steps: independent noise would average out before it moved the arm anywhere.
        self._noise = 0.8 * self._noise + 0.6 * self.style.noise * self.rng.normal(size=3)
        motion = self.style.gain * (target - gripper) + self._noise
        if self._resting == 0 and self.rng.random() < self.style.pause:
            self._resting = int(self.rng.integers(2, 7))
        if self._resting > 0:
            self._resting -= 1
            motion = np.zeros(3)
        return np.clip(np.append(motion, fingers), -1.0, 1.0).astype(np.float32)

    def _target(self, gripper: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, float]:
        """Where the gripper should go and what the fingers should do; moves on to the next phase when one is done."""
        grasp_point = cube + self.style.grasp
        above = cube + self.style.approach
        if self._phase == "carry" and np.linalg.norm(cube - gripper) > LOST_BEYOND:
            self._phase = "approach"
        if self._phase == "approach" and np.linalg.norm(above - gripper) < 0.03:
            self._phase = "descend"
        if self._phase == "descend" and np.linalg.norm(grasp_point - gripper) < GRASPED_WITHIN:
            self._phase, self._closing = "close", 0
        if self._phase == "close" and self._closing >= CLOSING_STEPS:
            self._phase, self._lift_to = "carry", gripper[2] + self.style.lift_first
        if self._phase == "approach":
            return above, OPEN
        if self._phase == "descend":
            return grasp_point, OPEN
        if self._phase == "close":
            self._closing += 1
            return grasp_point, CLOSED
        if gripper[2] < self._lift_to - 0.01:
            return np.append(gripper[:2], self._lift_to), CLOSED
        self._lift_to = 0.0  # high enough: from now on straight to the goal, downwards too
        return gripper + goal - cube, CLOSED


def collect_demonstrations(
    n_episodes: int, seed: int = 0, clumsiness: float = 1.0, progress_bar: bool = True
) -> Demonstrations:
    """
    Let the teacher play, each episode in another style, and keep all episodes, the failed ones too.

    :param n_episodes: number of episodes
    :param seed: seed of everything: styles, noise, initial states
    :param clumsiness: scales noise, pauses and misplaced grasps; at 0 only the slowest styles fail
    :param progress_bar: show a bar that counts the episodes
    :return: the demonstrations
    """
    rng = np.random.default_rng(seed)
    episodes: list[Episode] = []
    env = make_env()
    with tqdm(total=n_episodes, desc="demonstrations", disable=not progress_bar) as bar:
        for _ in range(n_episodes):
            teacher = ScriptedPickAndPlace(Style.sample(rng, clumsiness), rng)
            episodes.append(_play(env, int(rng.integers(2**31)), teacher))
            bar.update()
            bar.set_postfix(success=f"{np.mean([episode.success for episode in episodes]):.0%}")
    env.close()
    return Demonstrations(episodes, source=f"scripted {ENV_ID}, seed {seed}, clumsiness {clumsiness:g}")


def _play(env: gym.Env, seed: int, teacher: ScriptedPickAndPlace) -> Episode:
    """Play one episode to its end."""
    observation, info = env.reset(seed=seed)
    observations, actions, rewards, terminations, truncations = [observation], [], [], [], []
    done = False
    while not done:
        actions.append(teacher.act(observation))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        terminations.append(terminated)
        truncations.append(truncated)
        done = terminated or truncated
    return Episode(
        observations={key: np.stack([one[key] for one in observations]) for key in observation},
        actions=np.stack(actions),
        rewards=np.array(rewards),
        terminations=np.array(terminations),
        truncations=np.array(truncations),
        success=bool(info["is_success"]),
    )
