"""Navigation around obstacles in the plane: four ways to the goal, and an expert who takes all of them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_swfp.demonstrations import Demonstrations, Episode

#: Centres of the discs that stand in a row between start and goal, from the bottom up, and their radius
OBSTACLES, RADIUS = np.array([[0.0, -0.5], [0.0, 0.0], [0.0, 0.5]]), 0.15
#: Ways past them, from the bottom up: below, between the first two, between the last two, above
N_CORRIDORS = len(OBSTACLES) + 1
START, GOAL = np.array([-0.9, 0.0]), np.array([0.9, 0.0])
#: Half the side of the square that starts are drawn from; distance at which the goal is reached
START_JITTER, GOAL_RADIUS = 0.05, 0.1
#: Distance of one step at full speed
STEP = 0.05
STEP_COST, COLLISION_COST, GOAL_REWARD = 0.02, 0.02, 1.0

#: Where the expert crosses the row of obstacles: the middle of each corridor, the outer ones not far from the discs
_CROSSINGS = np.array([-0.8, -0.25, 0.25, 0.8])
_EXPERT_SPEED, _EXPERT_NOISE, _WAYPOINT_REACHED = (0.5, 0.8), 0.2, 0.06


class Navigation(gym.Env[np.ndarray, np.ndarray]):
    """
    A point that chooses its velocity goes from left to right past a row of three discs. Four corridors lead past them,
    and so paths fall into homotopy classes: none can be bent into one of another corridor. (Paths that loop around
    discs form infinitely many more.)

    The observation is the position, ``[2]``. An action in ``[-1, 1]^2`` is a velocity, cut to unit length, of which 1
    is a distance of 0.05 a step; at a disc or the wall the point slides along. Each step costs 0.02, and 0.02 more if
    it touches a disc; the goal pays 1 and ends the episode. So the return falls with the time taken, and the inner
    corridors are shorter. Registered with a limit of 150 steps.

    ``info`` has ``is_success``, ``homotopy`` (the corridor, 0 to 3 from the bottom up; -1 while the path has no class
    or one that loops) and ``collision``.

    :param render_mode: ``"rgb_array"``, or none
    :raises ValueError: for another render mode
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f'render_mode must be "rgb_array" or None, not {render_mode!r}')
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, (2,))
        self.action_space = spaces.Box(-1.0, 1.0, (2,))
        self.path = [START.copy()]
        self._crossings: list[int] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: Seed of the environment's generator, which draws the start
        :param options: Not used
        :return: Observation and information
        """
        super().reset(seed=seed)
        self.path = [START + self.np_random.uniform(-START_JITTER, START_JITTER, 2)]
        self._crossings = []
        return self._observation(), self._info(success=False, collision=False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: Velocity, ``[2]``
        :return: Observation, reward, whether the goal is reached, False, information
        """
        velocity = np.asarray(action, float)
        velocity = velocity / max(float(np.linalg.norm(velocity)), 1.0)
        position, collision = _slide(self.path[-1] + STEP * velocity)
        direction, corridor = self._cross(self.path[-1], position)
        self.path.append(position)
        success = bool(np.linalg.norm(position - GOAL) <= GOAL_RADIUS)
        reward = (
            GOAL_REWARD * success - STEP_COST - COLLISION_COST * collision + self._crossing_reward(direction, corridor)
        )
        return self._observation(), reward, success, False, self._info(success, collision)

    def _cross(self, before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
        """
        Keep the word that says the path's class: corridors crossed, as 1 to 4 rightward and -1 to -4 leftward, where a
        crossing and its reverse in succession cancel.

        :return: 1 for rightward, -1 for leftward, 0 for no crossing; and the corridor, 0 to 3
        """
        if (before[0] < 0.0) == (after[0] < 0.0):
            return 0, 0
        share = before[0] / (before[0] - after[0])
        corridor = int(np.searchsorted(OBSTACLES[:, 1], before[1] + share * (after[1] - before[1])))
        direction = 1 if after[0] >= 0.0 else -1
        letter = direction * (corridor + 1)
        if self._crossings and self._crossings[-1] == -letter:
            self._crossings.pop()
        else:
            self._crossings.append(letter)
        return direction, corridor

    def _crossing_reward(self, direction: int, corridor: int) -> float:
        return 0.0

    def _observation(self) -> np.ndarray:
        return self.path[-1].astype(np.float32)

    def _info(self, success: bool, collision: bool) -> dict[str, Any]:
        homotopy = self._crossings[0] - 1 if len(self._crossings) == 1 else -1
        return {"is_success": success, "homotopy": homotopy, "collision": collision}

    def render(self) -> np.ndarray | None:
        """
        :return: Picture of the path so far, ``[300, 300, 3]``, 8 bits; ``None`` without a render mode
        :raises ImportError: if matplotlib is missing
        """
        if self.render_mode is None:
            return None
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('Rendering needs matplotlib: pip install "sb3-swfp[robotics]"') from error
        figure = Figure(figsize=(3.0, 3.0), dpi=100)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        draw_arena(axes)
        path = np.array(self.path)
        axes.plot(path[:, 0], path[:, 1], color="#0072B2")
        axes.plot(*path[-1], "o", color="#0072B2")
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3].copy()

    def close(self) -> None:
        """Nothing is held open."""


class ShiftingNavigation(Navigation):
    """
    One corridor pays a bonus, and which one changes with the steps taken. Going back through *any* corridor takes the
    bonus off again, so that loops never pay and the position alone says what is still to come. ``info`` has
    ``bonus_corridor``. The clock starts at a reset with a seed, and runs on over all other resets.

    :param period: Environment steps after which the bonus moves to the next corridor of ``order``
    :param order: Corridors (0 to 3, from the bottom up) in the order in which they pay; after the last the first again
    :param bonus: Bonus
    :param render_mode: ``"rgb_array"``, or none
    :raises ValueError: for a period below 1 or a corridor that is not there
    """

    def __init__(
        self,
        period: int = 10_000,
        order: tuple[int, ...] = (0, 2, 1, 3),
        bonus: float = 0.5,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode)
        if period < 1:
            raise ValueError(f"period must be at least 1, got {period}")
        if not order or not set(order) <= set(range(N_CORRIDORS)):
            raise ValueError(f"order must name corridors from 0 to {N_CORRIDORS - 1}, not {order}")
        self.period, self.order, self.bonus = period, tuple(order), bonus
        self.env_steps = 0

    @property
    def bonus_corridor(self) -> int:
        """The corridor that pays now."""
        return self.order[self.env_steps // self.period % len(self.order)]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: Seed of the environment's generator; if given, the clock starts again
        :param options: Not used
        :return: Observation and information
        """
        if seed is not None:
            self.env_steps = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: Velocity, ``[2]``
        :return: Observation, reward (by the corridor that paid before this step), as in :class:`Navigation`
        """
        result = super().step(action)
        self.env_steps += 1
        return result

    def _crossing_reward(self, direction: int, corridor: int) -> float:
        if direction > 0:
            return self.bonus if corridor == self.bonus_corridor else 0.0
        return self.bonus * direction

    def _info(self, success: bool, collision: bool) -> dict[str, Any]:
        return super()._info(success, collision) | {"bonus_corridor": self.bonus_corridor}


def _slide(position: np.ndarray) -> tuple[np.ndarray, bool]:
    """Push a position out of the discs and back from the wall; whether it was in a disc."""
    offsets = position - OBSTACLES
    distances = np.linalg.norm(offsets, axis=1)
    nearest = int(distances.argmin())
    touched = bool(distances[nearest] < RADIUS)
    if touched:
        # No step reaches a disc's centre: it is three steps from the rim
        position = OBSTACLES[nearest] + offsets[nearest] * (RADIUS / distances[nearest])
    return np.clip(position, -1.0, 1.0), touched


def draw_arena(axes: Any) -> None:
    """
    :param axes: matplotlib axes to draw obstacles, start and goal into
    """
    from matplotlib.patches import Circle

    for centre in OBSTACLES:
        axes.add_patch(Circle((centre[0], centre[1]), RADIUS, color="#7F7F7F"))
    axes.add_patch(Circle((GOAL[0], GOAL[1]), GOAL_RADIUS, color="#009E73", alpha=0.5))
    axes.plot(*START, "s", color="black", markersize=4)
    axes.set(xlim=(-1.0, 1.0), ylim=(-1.0, 1.0), xticks=[], yticks=[], aspect="equal")


def navigation_demonstrations(n_episodes: int, seed: int) -> Demonstrations:
    """
    A scripted expert in :class:`Navigation`: it goes to a point before the row of discs, across it and to the goal,
    with noise on every action. It takes the four corridors equally often (as near as the number of episodes allows),
    in random order. It is slower than it could be, and unsteady, so that reinforcement learning has something to
    improve.

    :param n_episodes: How many
    :param seed: Of the order, the starts, the points on the way, the speeds and the noise
    :return: The episodes; all reach the goal
    :raises ValueError: if ``n_episodes`` is below 1
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes}")
    rng = np.random.default_rng(seed)
    env = Navigation()
    corridors = rng.permutation(np.arange(n_episodes) % N_CORRIDORS)
    env.reset(seed=int(rng.integers(2**31)))
    return Demonstrations([_demonstrate(env, int(corridor), rng) for corridor in corridors], "scripted navigation")


def _demonstrate(env: Navigation, corridor: int, rng: np.random.Generator) -> Episode:
    crossing = np.array([0.0, _CROSSINGS[corridor]])
    waypoints = [
        crossing + [-0.25, 0.0] + rng.normal(0.0, 0.03, 2),
        crossing + [0.25, 0.0] + rng.normal(0.0, 0.03, 2),
        GOAL,
    ]
    speed = rng.uniform(*_EXPERT_SPEED)
    observations, actions, rewards, done = [env.reset()[0]], [], [], False
    while not done:
        offset = waypoints[0] - env.path[-1]
        if len(waypoints) > 1 and np.linalg.norm(offset) < _WAYPOINT_REACHED:
            waypoints.pop(0)
            offset = waypoints[0] - env.path[-1]
        velocity = speed * offset / max(float(np.linalg.norm(offset)), 1e-9) + rng.normal(0.0, _EXPERT_NOISE, 2)
        action = np.clip(velocity, -1.0, 1.0).astype(np.float32)
        observation, reward, done, _, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    ends = np.arange(len(actions)) == len(actions) - 1
    return Episode(np.array(observations), np.array(actions), np.array(rewards), ends, np.zeros_like(ends), True)
