"""What the toys' figures show: runs on the bandits, each returning plain numbers. ``benchmarks.toys`` draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_swfp.baselines.dppo import DPPO
from sb3_swfp.baselines.swfp_kl import SWFPKL
from sb3_swfp.bounds import bound_action
from sb3_swfp.demonstrations import Demonstrations, Episode
from sb3_swfp.envs.bandit import Bandit, ShiftingBandit
from sb3_swfp.policies import FlowActor
from sb3_swfp.swfp import SWFP
from sb3_swfp.transport import transport_cost, w2_exact, w2_paired

#: Entropy coefficient of all figures, in units of the reward
ALPHA = 0.1
#: Temperature of what is cloned for `paths`: wide and of equal weight, so that there is something to improve
CLONE_ALPHA = 0.3
#: Points of a cloud whose exact W2 is taken; pairs of independent clouds that the noise floor is the mean of
CLOUD, FLOOR_PAIRS = 500, 20
N_DEMONSTRATIONS, CLONE_STEPS = 1000, 1500
N_BLOCKS = 5
ALGORITHMS: dict[str, Any] = {"SWFP": SWFP, "KL variant": SWFPKL, "DPPO": DPPO}
#: The best mode stands still for an eighth of the run and then goes on by a quarter of a turn
HOLD_SHARE, TURNS = 0.125, 0.25

#: A one-step bandit in two dimensions needs no large networks. The same for all algorithms
_POLICY = dict(n_blocks=N_BLOCKS, block_net_arch=[64, 64], net_arch=[64, 64])
#: SWFP on the toys: faster than for robots, whose clones are worth more, and whose runs are ten times as long
_SWFP: dict[str, Any] = dict(
    learning_rate=1e-3,
    batch_size=128,
    tau=0.05,
    ent_coef=ALPHA,
    jko_epoch=20,
    # Episodes of one step have no next state to pick an action in
    target_candidates=1,
    policy_kwargs=_POLICY,
    device="cpu",
)
#: Called with the environment steps done
Progress = Callable[[int], Any]


@dataclass
class Looks:
    """
    One run's numbers.

    :param steps: Environment steps at each look at the flow
    :param values: What was measured there
    """

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)


class Watch(BaseCallback):
    """
    Measure the flow at regular steps, the first time before learning, and end the run after ``steps`` (SB3's on-policy
    algorithms would complete their roll-out, and a run may be planned longer than it is watched).

    :param measure: Called with the actions' information since the last look (none at first); returns numbers by name
    :param steps: Environment steps to watch
    :param every: Environment steps between two looks
    :param progress: Told the steps done
    """

    def __init__(
        self, measure: Callable[[list[dict[str, Any]]], dict[str, float]], steps: int, every: int, progress: Progress
    ):
        super().__init__()
        self.measure, self.steps, self.every, self.progress = measure, steps, every, progress
        self.curve = Looks()
        self._infos: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self._look()

    def _on_step(self) -> bool:
        self._infos += self.locals["infos"]
        self.progress(1)
        if self.num_timesteps % self.every == 0:
            self._look()
        return self.num_timesteps < self.steps

    def _look(self) -> None:
        self.curve.steps.append(self.num_timesteps)
        for name, value in self.measure(self._infos).items():
            self.curve.values.setdefault(name, []).append(value)
        self._infos = []


def demonstrations_of(actions: np.ndarray, env: Bandit) -> Demonstrations:
    """
    :param actions: Actions, ``[n, 2]``
    :param env: Bandit that they were taken in
    :return: An episode of one step for each
    """
    observations, end = np.zeros((2, 1), np.float32), np.array([True])
    rewards = env.reward(actions)
    return Demonstrations(
        [
            Episode(observations, action[None].astype(np.float32), reward[None], end, ~end)
            for action, reward in zip(actions, rewards, strict=True)
        ],
        "Boltzmann samples",
    )


@th.no_grad()
def flow_particles(actor: FlowActor, noise: np.ndarray) -> np.ndarray:
    """
    The flow's own particles in the bandit's one state: neither the critic's picks nor an algorithm's exploration noise.

    :param actor: The flow
    :param noise: ``x_0``, ``[n, 2]``
    :return: ``x_0, ..., x_N``, the last bounded to actions, ``[N + 1, n, 2]``
    """
    x_0 = th.as_tensor(noise, dtype=th.float32)
    *inner, end = actor.cascade.integrate(actor.features(th.zeros(1, 1)), x_0).particles
    return th.stack([*inner, bound_action(end)]).numpy().astype(float)


def acting_flow(model: BaseAlgorithm) -> FlowActor:
    """
    :param model: SWFP, its KL variant or DPPO
    :return: The flow that acts when it is evaluated: the average, where there is one
    """
    return model.actor if isinstance(model, DPPO) else model.actor_average  # type: ignore[attr-defined]


def w2(first: np.ndarray, second: np.ndarray) -> float:
    """
    :param first: Points, ``[n, 2]``
    :param second: Points, ``[m, 2]``
    :return: Exact W2 (not squared)
    """
    return w2_exact(th.as_tensor(first), th.as_tensor(second)).sqrt().item()


def noise_floor(env: Bandit, rng: np.random.Generator) -> list[float]:
    """
    :param env: Bandit
    :param rng: Source of randomness
    :return: W2 between two independent clouds of Boltzmann samples, for ``FLOOR_PAIRS`` pairs
    """
    clouds = [[env.sample_boltzmann(CLOUD, ALPHA, rng) for _ in range(2)] for _ in range(FLOOR_PAIRS)]
    return [w2(*pair) for pair in clouds]


def mode_shares(env: Bandit, actions: np.ndarray) -> list[float]:
    """
    :param env: Bandit
    :param actions: Actions, ``[n, 2]``
    :return: Share of them that is nearest to each bump
    """
    nearest = np.linalg.norm(actions[:, None] - env.centres, axis=-1).argmin(axis=1)
    return (np.bincount(nearest, minlength=len(env.centres)) / len(actions)).tolist()


def _distance_to_boltzmann(model: SWFP, env: Bandit, rng: np.random.Generator) -> dict[str, float]:
    actions = flow_particles(model.actor_average, rng.standard_normal((CLOUD, 2)))[-1]
    return {"w2": w2(actions, env.sample_boltzmann(CLOUD, ALPHA, rng))}


def boltzmann_run(seed: int, steps: int, progress: Progress) -> dict[str, Any]:
    """
    SWFP from scratch on the bandit with a fixed entropy coefficient: how far its flow is from the Boltzmann density.

    :param seed: Seed of the run
    :param steps: Environment steps
    :param progress: Told the steps done
    :return: ``steps``, ``w2`` (at each), ``floor`` and the modes' shares at the end beside the true ones
    """
    env, rng = Bandit(), np.random.default_rng(seed)
    # SWFP's own epochs and averages, and steps that fall, hence the blocks' learning rate too: with a constant 3e-4,
    # or the quick epochs of the other figures, the flow passes the density and goes on to the best mode (docs/toys.md)
    settings = _SWFP | dict(jko_step_size="auto_lin_0.03", jko_epoch=50, tau=0.005)
    model = SWFP("FlowPolicy", env, learning_starts=500, seed=seed, **settings)
    watch = Watch(lambda _: _distance_to_boltzmann(model, env, rng), steps, max(steps // 25, 1), progress)
    model.learn(steps, callback=watch)
    last = flow_particles(model.actor_average, rng.standard_normal((10_000, 2)))[-1]
    return {
        "steps": watch.curve.steps,
        "w2": watch.curve.values["w2"],
        "floor": noise_floor(env, rng),
        "mode_shares": mode_shares(env, last),
        "true_mode_shares": mode_shares(env, env.sample_boltzmann(10_000, ALPHA, rng)),
    }


def paths_run(seed: int, steps: int, progress: Progress) -> dict[str, Any]:
    """
    SWFP cloned from wide samples and then fine-tuned: its particles' paths before and after, and the optimal transport
    from the same noise to Boltzmann samples.

    :param seed: Seed of the run
    :param steps: Environment steps
    :param progress: Told the steps done
    :return: ``paths`` (arrays) by panel, and ``numbers`` of each
    """
    env, rng = Bandit(), np.random.default_rng(seed)
    model = SWFP("FlowPolicy", env, jko_step_size="auto_lin_0.05", critic_warmup=300, seed=seed, **_SWFP)
    clone_data = demonstrations_of(env.sample_boltzmann(N_DEMONSTRATIONS, CLONE_ALPHA, rng), env)
    model.pretrain(clone_data, CLONE_STEPS)
    noise, truth = rng.standard_normal((CLOUD, 2)), env.sample_boltzmann(CLOUD, ALPHA, rng)
    paths = {"before": flow_particles(model.actor_average, noise)}
    model.learn(steps, callback=Watch(lambda _: {}, steps, steps, progress))
    paths["after"] = flow_particles(model.actor_average, noise)
    paths["geodesic"] = geodesic(noise, truth)
    return {
        "paths": paths,
        "numbers": {name: path_numbers(path, truth) for name, path in paths.items()},
        "floor": float(np.mean(noise_floor(env, rng))),
    }


def geodesic(noise: np.ndarray, target: np.ndarray) -> np.ndarray:
    """
    Displacement interpolation: straight lines along the optimal plan (POT's ``ot.emd``), in ``N_BLOCKS`` equal steps.

    :param noise: Points to start from, ``[n, 2]``
    :param target: As many points to end at, ``[n, 2]``
    :return: ``[N_BLOCKS + 1, n, 2]``
    """
    import ot

    plan = ot.emd(
        np.full(len(noise), 1.0 / len(noise)), np.full(len(target), 1.0 / len(target)), ot.dist(noise, target)
    )
    # With equal weights an optimal plan is a permutation
    ends = target[plan.argmax(axis=1)]
    times = np.linspace(0.0, 1.0, N_BLOCKS + 1)[:, None, None]
    return (1.0 - times) * noise + times * ends


def path_numbers(path: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """
    :param path: ``x_0, ..., x_N``, ``[N + 1, n, 2]``
    :param truth: Boltzmann samples, ``[n, 2]``
    :return: W2 of the end to the truth; mean squared distance from start to end, beside the least possible between
        these two clouds; length of the path relative to its chord; squared movement of each block
    """
    points = th.as_tensor(path)
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=-1).sum(axis=0)
    chords = np.linalg.norm(path[-1] - path[0], axis=-1)
    return {
        "w2_to_boltzmann": w2(path[-1], truth),
        "squared_distance": w2_paired(points[0], points[-1]).item(),
        "optimal_squared_distance": w2(path[0], path[-1]) ** 2,
        "length_over_chord": float(lengths.sum() / chords.sum()),
        "transport_cost": transport_cost(points[:-1], points[1:]).tolist(),
    }


def shifting_settings(algorithm: str) -> dict[str, Any]:
    """
    :param algorithm: One of ``ALGORITHMS``
    :return: Its arguments. SWFP and its KL variant share all but the trust region
    """
    if algorithm == "DPPO":
        # Published clip ranges and noise; roll-outs that follow a mode which moves within thousands of steps
        return dict(n_steps=100, batch_size=100, learning_rate=3e-4, policy_kwargs=_POLICY, device="cpu")
    # A bandit's reward is forgotten only when the buffer drops it: of 500 steps, in which the mode moves by half a
    # bump's width. Both averages (of critics and flow) must keep up with it too, hence tau
    settings = _SWFP | dict(buffer_size=500, critic_warmup=300)
    if algorithm == "SWFP":
        # It must go where its clone never was
        return settings | dict(jko_step_size="auto_0.03", confined=False)
    # Held, as SWFP's: a clone's would fall by default, and where the world changes no end is known. Of 0.003, 0.01,
    # 0.03 and 0.1 nats one of the best
    own = {("kl_epoch" if name == "jko_epoch" else name): value for name, value in settings.items()}
    return own | {"kl_step": 0.01}


def shifting_run(
    algorithm: str, settings: Mapping[str, Any], seed: int, steps: int, progress: Progress
) -> dict[str, Any]:
    """
    A clone of the first Boltzmann density, online in the bandit whose modes turn.

    :param algorithm: One of ``ALGORITHMS``
    :param settings: Its arguments, as :func:`shifting_settings` returns them
    :param seed: Seed of the run; the clone's data depends on nothing else
    :param steps: Environment steps
    :param progress: Told the steps done
    :return: ``steps``, ``flow_regret`` (mean of the flow's own particles), ``acted_regret`` (mean of the actions taken
        since the last look, the algorithm's exploration included; none at first) and ``best_mode_share`` (particles
        within two bumps' widths of the best action)
    """
    hold = int(HOLD_SHARE * steps)
    env = ShiftingBandit(period=max(round((steps - hold) / TURNS), 1), hold=hold)
    rng = np.random.default_rng(seed)
    data = demonstrations_of(env.sample_boltzmann(N_DEMONSTRATIONS, ALPHA, rng), env)
    model = ALGORITHMS[algorithm]("FlowPolicy", env, seed=seed, **settings)
    model.pretrain(data, CLONE_STEPS)

    def measure(infos: list[dict[str, Any]]) -> dict[str, float]:
        actions = flow_particles(acting_flow(model), rng.standard_normal((CLOUD, 2)))[-1]
        best = env.best_action()
        near = np.linalg.norm(actions - best, axis=1) < 2.0 * env.width
        numbers = {
            "flow_regret": float(env.reward(best) - env.reward(actions).mean()),
            "best_mode_share": float(near.mean()),
        }
        return numbers | ({"acted_regret": float(np.mean([info["regret"] for info in infos]))} if infos else {})

    watch = Watch(measure, steps, max(steps // 40, 1), progress)
    model.learn(steps, callback=watch)
    return {"steps": watch.curve.steps, **watch.curve.values}


def boltzmann_regret() -> float:
    """:return: Mean regret of the Boltzmann density itself, which turning does not change: what ``ALPHA`` asks for"""
    env = Bandit()
    samples = env.sample_boltzmann(20_000, ALPHA, np.random.default_rng(0))
    return float(env.reward(env.best_action()) - env.reward(samples).mean())
