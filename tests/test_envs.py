"""The toys: checked by Gymnasium and SB3, densities against quadrature, paths against classes known by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_by_gymnasium
from stable_baselines3.common.env_checker import check_env as check_by_sb3
from tiny import subprocess_environment, tiny_model

import sb3_swfp.envs
from sb3_swfp.envs import Bandit, Navigation, ShiftingBandit, ShiftingNavigation, navigation_demonstrations
from sb3_swfp.envs.navigation import N_CORRIDORS, OBSTACLES, RADIUS

IDS = ("SWFP-Bandit-v0", "SWFP-BanditShifting-v0", "SWFP-Navigation-v0", "SWFP-NavigationShifting-v0")
#: In the middle of each corridor
HEIGHTS = (-0.8, -0.25, 0.25, 0.8)


@pytest.mark.parametrize("name", IDS)
@pytest.mark.filterwarnings("error")
def test_passes_the_checks(name: str) -> None:
    check_by_gymnasium(gym.make(name).unwrapped)
    check_by_sb3(gym.make(name))


@pytest.mark.parametrize("name", IDS)
def test_swfp_learns_in_it(name: str) -> None:
    model = tiny_model(gym.make(name)).learn(40)
    assert model._n_updates > 0 and all(bool(p.isfinite().all()) for p in model.policy.parameters())


def test_importing_registers_without_loading_the_environments() -> None:
    code = (
        "import sys, gymnasium, sb3_swfp.envs\n"
        "assert not {'torch', 'matplotlib', 'stable_baselines3', 'sb3_swfp.envs.bandit'} & set(sys.modules)\n"
        "print([name for name in gymnasium.registry if name.startswith('SWFP-')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=subprocess_environment(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(list(IDS))


def test_public_names_resolve() -> None:
    assert set(sb3_swfp.envs.__all__) <= set(dir(sb3_swfp.envs))
    assert all(getattr(sb3_swfp.envs, name).__module__.startswith("sb3_swfp.envs.") for name in sb3_swfp.envs.__all__)
    with pytest.raises(AttributeError, match="Bandito"):
        getattr(sb3_swfp.envs, "Bandit" + "o")


class TestBandit:
    @pytest.mark.parametrize("alpha", [0.05, 0.1, 1.0])
    def test_density_against_gauss_legendre(self, alpha: float) -> None:
        # The integrand is analytic, so that quadrature converges faster than any power of the number of nodes
        env, (nodes, weights) = Bandit(), np.polynomial.legendre.leggauss(150)
        square = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1)
        z = weights @ np.exp(env.reward(square) / alpha) @ weights
        expected = env.reward(square) / alpha - np.log(z)
        np.testing.assert_allclose(env.log_boltzmann(square, alpha), expected, atol=1e-3)

    @pytest.mark.parametrize("alpha", [0.05, 0.3])
    def test_samples_follow_the_density(self, alpha: float) -> None:
        env, n = Bandit(heights=(1.0, 0.9, 0.85, 0.8)), 40_000
        samples = env.sample_boltzmann(n, alpha, np.random.default_rng(0))
        assert samples.shape == (n, 2) and np.abs(samples).max() <= 1.0
        # Moments and quarters of the square, against sums over a grid of other spacing
        ticks = (np.arange(300) + 0.5) / 150.0 - 1.0
        grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)
        mass = np.exp(env.log_boltzmann(grid, alpha)) / 150.0**2
        assert mass.sum() == pytest.approx(1.0, abs=1e-3)
        np.testing.assert_allclose(samples.mean(axis=0), mass @ grid, atol=0.015)
        np.testing.assert_allclose(np.cov(samples.T), np.cov(grid.T, aweights=mass), atol=0.01)
        for centre in env.centres:
            share = (samples * centre > 0.0).all(axis=1).mean()
            assert share == pytest.approx(mass[(grid * centre > 0.0).all(axis=1)].sum(), abs=0.012)

    def test_samples_are_reproducible_and_exactly_as_many(self) -> None:
        first, second = (Bandit().sample_boltzmann(7, 0.1, np.random.default_rng(3)) for _ in range(2))
        assert len(first) == 7
        np.testing.assert_array_equal(first, second)

    def test_reward_of_one_bump(self) -> None:
        env = Bandit(centres=[(0.2, -0.4)], heights=[2.0], width=0.5)
        actions = np.array([[0.2, -0.4], [0.7, -0.4]])
        np.testing.assert_allclose(env.reward(actions), [2.0, 2.0 * np.exp(-0.5)])
        np.testing.assert_allclose(env.best_action(), [0.2, -0.4])

    def test_regret_is_the_distance_to_the_best_reward(self) -> None:
        env = Bandit(centres=[(-0.2, 0.0), (0.3, 0.0)], heights=[0.8, 1.0])
        env.reset(seed=0)
        # The bumps overlap, so the mode is not the centre; no point of a fine grid beats it
        best = env.best_action()
        ticks = np.linspace(-1.0, 1.0, 401)
        grid = env.reward(np.stack(np.meshgrid(ticks, ticks), axis=-1)).max()
        assert 0.0 <= env.reward(best) - grid < 1e-4 and best[0] < 0.3
        _, reward, terminated, truncated, info = env.step(np.array([0.0, 0.5]))
        assert terminated and not truncated and info["best_mode"] == 1
        assert info["regret"] == pytest.approx(env.reward(best) - reward)
        assert env.step(info["best_action"])[4]["regret"] == pytest.approx(0.0, abs=1e-12)

    def test_what_a_caller_changes_stays_the_callers(self) -> None:
        env = Bandit(centres=[(0.2, -0.4)], heights=[1.0])
        env.best_action()[:] = 9.0
        np.testing.assert_allclose(env.best_action(), [0.2, -0.4])

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (dict(heights=[1.0]), r"shape \(K, 2\)"),
            (dict(centres=[(1.5, 0.0)], heights=[1.0]), "in the square"),
            (dict(width=0.0), "positive"),
            (dict(heights=(1.0, 0.9, 0.8, -0.1)), "positive"),
        ],
    )
    def test_impossible_arguments(self, kwargs: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Bandit(**kwargs)  # type: ignore[arg-type]

    def test_impossible_alpha(self) -> None:
        with pytest.raises(ValueError, match="alpha"):
            Bandit().log_boltzmann(np.zeros(2), 0.0)
        with pytest.raises(ValueError, match="alpha"):
            Bandit().sample_boltzmann(1, -1.0, np.random.default_rng(0))


class TestShiftingBandit:
    def test_best_mode_turns_after_the_hold(self) -> None:
        env = ShiftingBandit(period=8, hold=2)
        env.reset(seed=0)
        angles = []
        for _ in range(7):
            best = env.step(env.action_space.sample())[4]["best_action"]
            angles.append(np.degrees(np.arctan2(best[1], best[0])))
            env.reset()
        # Steps 0 to 6: still until two steps are taken, then an eighth of a turn each. The other bumps pull the mode a
        # little off its bump's centre
        np.testing.assert_allclose(np.unwrap(angles, period=360.0), [45, 45, 45, 90, 135, 180, 225], atol=1e-2)

    def test_turning_carries_the_reward_along(self) -> None:
        env, still = ShiftingBandit(period=4), Bandit()
        env.move_to(1)
        actions = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 2))
        quarter_turned = np.stack([-actions[:, 1], actions[:, 0]], axis=1)
        np.testing.assert_allclose(env.reward(quarter_turned), still.reward(actions))
        np.testing.assert_allclose(env.log_boltzmann(quarter_turned, 0.1), still.log_boltzmann(actions, 0.1), atol=1e-3)

    def test_switching_hands_the_best_height_on(self) -> None:
        env = ShiftingBandit(schedule="switch", period=2)
        env.reset(seed=0)
        modes = []
        for _ in range(10):
            modes.append(env.step(np.zeros(2))[4]["best_mode"])
            env.reset()
        assert modes == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
        assert env.heights.max() == 1.0

    def test_only_a_seed_starts_the_clock_again(self) -> None:
        env = ShiftingBandit(period=4)
        env.reset(seed=0)
        env.step(np.zeros(2))
        env.reset()
        assert env.env_steps == 1
        env.reset(seed=0)
        assert env.env_steps == 0
        np.testing.assert_array_equal(env.centres, Bandit().centres)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (dict(schedule="jump"), "schedule"),
            (dict(period=0), "period"),
            (dict(hold=-1), "hold"),
            (dict(centres=[(0.9, 0.9)], heights=[1.0]), "unit disc"),
        ],
    )
    def test_impossible_arguments(self, kwargs: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ShiftingBandit(**kwargs)  # type: ignore[arg-type]


def walk(env: Navigation, waypoints: Sequence[tuple[float, float]]) -> list[tuple[float, dict[str, object]]]:
    """Straight from point to point; rewards and information of all steps."""
    results: list[tuple[float, dict[str, object]]] = []
    for waypoint in waypoints:
        while np.linalg.norm(waypoint - env.path[-1]) > 0.03:
            action = np.clip((waypoint - env.path[-1]) / 0.05, -1.0, 1.0)
            _, reward, terminated, _, info = env.step(action)
            results.append((reward, info))
            assert len(results) < 400, f"stuck at {env.path[-1]} on the way to {waypoint}"
            if terminated:
                return results
    return results


class TestNavigation:
    @pytest.mark.parametrize("corridor", range(N_CORRIDORS))
    def test_each_corridor_is_a_class(self, corridor: int) -> None:
        env = Navigation()
        assert env.reset(seed=1)[1]["homotopy"] == -1
        height = HEIGHTS[corridor]
        results = walk(env, [(-0.3, height), (0.3, height), (0.9, 0.0)])
        assert [info["is_success"] for _, info in results] == [False] * (len(results) - 1) + [True]
        assert results[-1][1]["homotopy"] == corridor
        assert not any(info["collision"] for _, info in results)
        assert sum(reward for reward, _ in results) == pytest.approx(1.0 - 0.02 * len(results))

    def test_there_and_back_cancels_but_a_loop_does_not(self) -> None:
        env = Navigation()
        env.reset(seed=0)
        through = [(-0.3, 0.25), (0.3, 0.25)]
        assert walk(env, [*through, *through[::-1]])[-1][1]["homotopy"] == -1
        assert walk(env, [(-0.3, -0.25), (0.3, -0.25)])[-1][1]["homotopy"] == 1
        # Around the middle disc and through again: a class of its own, not a corridor's
        loop = [(0.3, 0.25), (-0.3, 0.25), (-0.3, -0.25), (0.3, -0.25)]
        assert walk(env, loop)[-1][1]["homotopy"] == -1

    def test_discs_and_walls_stop_the_point(self) -> None:
        env = Navigation()
        env.reset(seed=0)
        costs = [env.step(np.array([1.0, 0.0]))[1] for _ in range(30)]
        assert costs[0] == pytest.approx(-0.02) and min(costs) == pytest.approx(-0.04)
        for _ in range(400):
            env.step(env.action_space.sample())
        for point in env.path:
            assert (np.linalg.norm(point - OBSTACLES, axis=1) >= RADIUS - 1e-9).all() and np.abs(point).max() <= 1.0

    def test_no_action_is_faster_than_full_speed(self) -> None:
        env = Navigation()
        env.reset(seed=0)
        env.step(np.array([1.0, 1.0]))
        assert np.linalg.norm(env.path[1] - env.path[0]) == pytest.approx(0.05)

    def test_registered_with_a_time_limit(self) -> None:
        env = gym.make("SWFP-Navigation-v0")
        env.reset(seed=0)
        ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(150)]
        assert ends[-1] == (False, True) and ends[-2] == (False, False)

    def test_renders_what_changes(self) -> None:
        pytest.importorskip("matplotlib")
        env = Navigation(render_mode="rgb_array")
        env.reset(seed=0)
        first = env.render()
        for _ in range(5):
            env.step(np.array([0.5, 0.5]))
        second = env.render()
        assert first is not None and second is not None
        assert first.shape == (300, 300, 3) and first.dtype == np.uint8 and (first != second).any()
        assert "matplotlib.pyplot" not in Path(sys.modules[Navigation.__module__].__file__ or "").read_text()
        assert Navigation().render() is None
        with pytest.raises(ValueError, match="render_mode"):
            Navigation(render_mode="human")


class TestShiftingNavigation:
    def test_bonus_moves_and_is_paid_once(self) -> None:
        env = ShiftingNavigation(period=1000, order=(1, 2))
        env.reset(seed=0)
        bonus = [reward + 0.02 for reward, _ in walk(env, [(-0.3, -0.25), (0.3, -0.25)])]
        assert sorted(np.round(bonus, 6))[-2:] == [0.0, 0.5]
        # Back by another corridor takes it off: loops never pay
        bonus = [reward + 0.02 for reward, _ in walk(env, [(0.3, 0.25), (-0.3, 0.25)])]
        assert sum(bonus) == pytest.approx(-0.5)
        env.env_steps = 1000
        assert env.step(np.zeros(2))[4]["bonus_corridor"] == 2
        env.reset()
        assert env.bonus_corridor == 2
        env.reset(seed=0)
        assert env.bonus_corridor == 1

    @pytest.mark.parametrize("kwargs", [dict(period=0), dict(order=(4,)), dict(order=())])
    def test_impossible_arguments(self, kwargs: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            ShiftingNavigation(**kwargs)  # type: ignore[arg-type]


class TestExpert:
    def test_uses_every_class_and_can_be_improved(self) -> None:
        data = navigation_demonstrations(20, seed=0)
        env, classes = Navigation(), []
        for episode in data:
            env.reset(seed=0)
            # The start is drawn; from there on nothing is
            env.path = [episode.observations[0].astype(float)]  # type: ignore[index]
            info = [env.step(action)[4] for action in episode.actions][-1]
            assert info["is_success"] and episode.success and episode.terminations[-1]
            np.testing.assert_allclose(env.path[-1], episode.observations[-1], atol=1e-5)  # type: ignore[index]
            classes.append(info["homotopy"])
        assert np.bincount(classes).tolist() == [5, 5, 5, 5]
        assert max(map(len, data)) < 150
        # The shortest way through an inner corridor at full speed
        env.reset(seed=0)
        best = sum(reward for reward, _ in walk(env, [(-0.2, 0.2), (0.2, 0.2), (0.9, 0.0)]))
        assert data.returns().mean() < best - 0.3

    def test_is_reproducible_and_varied(self) -> None:
        first, second, other = (navigation_demonstrations(4, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first.actions(), second.actions())
        assert first.actions().shape != other.actions().shape or (first.actions() != other.actions()).any()

    def test_fits_the_environment(self) -> None:
        env = gym.make("SWFP-Navigation-v0")
        assert navigation_demonstrations(4, seed=0).for_spaces(env.observation_space, env.action_space).n_transitions

    def test_needs_an_episode(self) -> None:
        with pytest.raises(ValueError, match="n_episodes"):
            navigation_demonstrations(0, seed=0)
