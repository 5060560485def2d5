"""The toys' figures: what is measured is right where the answer is known, and each command writes what it promises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch as th
from tiny import tiny_model

from benchmarks import toy_runs, toys
from sb3_swfp.envs import Bandit


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything small: the figures then mean nothing."""
    for name, value in (("CLOUD", 30), ("FLOOR_PAIRS", 2), ("N_DEMONSTRATIONS", 20), ("CLONE_STEPS", 10)):
        monkeypatch.setattr(toy_runs, name, value)
    threads = th.get_num_threads()
    yield
    th.set_num_threads(threads)


def run(name: str, folder: Path, *arguments: str) -> dict[str, object]:
    toys.main([name, "--steps", "120", "--out", str(folder), *arguments])
    picture = folder / f"toys-{name}.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 200_000
    return json.loads((folder / f"toys-{name}.json").read_text())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["paths", "boltzmann"])
def test_commands_write_figure_and_numbers_and_repeat_them(name: str, tmp_path: Path) -> None:
    first, second = (run(name, tmp_path / folder, "--seeds", "3") for folder in "ab")
    assert first["numbers"] and first == second
    assert first["seeds"] == [3] and first["steps"] == 120 and first["versions"]


@pytest.mark.usefixtures("quick")
def test_shifting_starts_all_from_equal_clones(tmp_path: Path) -> None:
    numbers = run("shifting", tmp_path, "--seeds", "0,1")["numbers"]
    assert isinstance(numbers, dict)
    # The clone is of the Boltzmann density, and the mean of its regret is about alpha times half the dimension
    assert numbers.pop("boltzmann_regret") == pytest.approx(0.2, abs=0.05)
    assert list(numbers) == list(toy_runs.ALGORITHMS)
    for runs in numbers.values():
        assert list(runs) == ["0", "1"]
        for seed, curve in runs.items():
            assert curve["steps"][0] == 0 and curve["steps"][-1] == 120
            assert len(curve["flow_regret"]) == len(curve["steps"]) == len(curve["acted_regret"]) + 1
            assert min(curve["flow_regret"]) > 0.0 and curve["mean_flow_regret_moving"] > 0.0
            # Same data, same seed of the networks, same noise to measure with
            assert curve["flow_regret"][0] == pytest.approx(numbers["SWFP"][seed]["flow_regret"][0], abs=0.1)


def test_particles_end_at_the_actions_of_the_flow() -> None:
    model = tiny_model(Bandit())
    noise = np.random.default_rng(0).standard_normal((50, 2))
    path = toy_runs.flow_particles(model.actor_average, noise)
    assert path.shape == (3, 50, 2)  # two blocks
    # A new cascade is the identity, and the end is bounded
    np.testing.assert_allclose(path[1], noise, atol=1e-6)
    inside = (np.abs(noise) < 0.8).all(axis=1)
    np.testing.assert_allclose(path[2][inside], noise[inside], atol=1e-6)
    assert np.abs(path[2]).max() <= 1.0


def test_geodesic_is_the_optimal_plan() -> None:
    # A translation is optimal, and no plan that crosses it can be
    noise = np.random.default_rng(0).standard_normal((40, 2))
    shuffled = np.random.default_rng(1).permutation(noise + [0.3, -0.2])
    path = toy_runs.geodesic(noise, shuffled)
    assert len(path) == toy_runs.N_BLOCKS + 1
    np.testing.assert_allclose(path[-1], noise + [0.3, -0.2], atol=1e-12)
    numbers = toy_runs.path_numbers(path, shuffled)
    assert numbers["w2_to_boltzmann"] == pytest.approx(0.0, abs=1e-9)
    assert numbers["squared_distance"] == pytest.approx(0.13) == numbers["optimal_squared_distance"]
    assert numbers["length_over_chord"] == pytest.approx(1.0)
    np.testing.assert_allclose(numbers["transport_cost"], 0.13 / toy_runs.N_BLOCKS**2)


def test_noise_floor_is_far_below_a_wrong_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_runs, "FLOOR_PAIRS", 3)
    env, rng = Bandit(), np.random.default_rng(0)
    uniform = rng.uniform(-1.0, 1.0, (toy_runs.CLOUD, 2))
    distance = toy_runs.w2(uniform, env.sample_boltzmann(toy_runs.CLOUD, toy_runs.ALPHA, rng))
    assert max(toy_runs.noise_floor(env, rng)) < 0.6 * distance


def test_demonstrations_hold_the_bandits_rewards() -> None:
    env, actions = Bandit(), np.array([[0.5, 0.5], [0.0, 0.0]])
    data = toy_runs.demonstrations_of(actions, env).for_spaces(env.observation_space, env.action_space)
    np.testing.assert_allclose(data.actions(), actions)
    np.testing.assert_allclose(data.returns(), env.reward(actions))
    assert toy_runs.mode_shares(env, np.array([[0.4, 0.4], [0.5, -0.6]])) == [0.5, 0.0, 0.0, 0.5]


def test_off_policy_pair_differs_in_the_trust_region_alone() -> None:
    ours, kl = (toy_runs.shifting_settings(name) for name in ("SWFP", "KL variant"))
    assert ours.pop("jko_epoch") == kl.pop("kl_epoch")
    # Both are held to the end: where the world changes, a step that falls falls behind
    assert re.fullmatch(r"auto_[0-9.]+", ours.pop("jko_step_size")) and isinstance(kl.pop("kl_step"), float)
    # The KL step has no confinement, and a moving mode asks for none
    assert ours.pop("confined") is False
    assert ours == kl


@pytest.mark.parametrize("arguments", [["moons"], ["paths", "--seeds", "x"], ["paths", "--steps", "0"]])
def test_impossible_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        toys.main(arguments)
    assert arguments[-1] in capsys.readouterr().err
