"""The measured sign that a critic may be trusted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sb3_swfp.ripeness import TRY_BELOW, CriticRipeness
from sb3_swfp.trial import CriticTrial


def test_new_critic_is_not_ripe_before_its_warm_up() -> None:
    ripeness = CriticRipeness()
    for _ in range(99):
        ripeness.update(5.0, 5.0)
    assert ripeness.drift == 0.0 and not ripeness.settled(100)
    ripeness.update(5.0, 5.0)
    assert ripeness.settled(100) and not ripeness.may_point(100)
    for _ in range(100):
        ripeness.update(5.0, 5.0)
    assert ripeness.may_point(100)


def test_averages_start_as_plain_means() -> None:
    ripeness = CriticRipeness()
    for q in (1.0, 2.0, 6.0):
        ripeness.update(q, 2.0 * q)
    assert ripeness.fast == pytest.approx(3.0) and ripeness.slow == pytest.approx(3.0)
    assert ripeness.magnitude == pytest.approx(6.0)
    assert ripeness.updates == 3


def test_drift_of_a_steady_climb_is_the_difference_of_the_lags() -> None:
    # On a ramp a moving average over n updates lags by n - 1 of them: 199 and 999
    ripeness, slope, magnitude = CriticRipeness(), 0.01, 50.0
    for step in range(12_000):
        ripeness.update(slope * step, magnitude)
    assert ripeness.drift == pytest.approx(slope * 800 / magnitude, rel=1e-3)


def test_ranking_is_allowed_at_a_drift_at_which_pointing_is_not() -> None:
    ripeness, slope = CriticRipeness(), 0.01
    for step in range(12_000):
        ripeness.update(slope * step, slope * 800 / 0.2)  # drift 0.2
    assert ripeness.settled(1000) and not ripeness.may_point(1000)


def test_climbing_critic_is_unripe_and_ripens_when_the_values_settle() -> None:
    ripeness = CriticRipeness()
    for step in range(1000):
        ripeness.update(0.1 * step, 0.1 * step)
    assert not ripeness.settled(500)
    for _ in range(5000):
        ripeness.update(100.0, 100.0)
    assert ripeness.settled(500) and ripeness.may_point(500)
    assert ripeness.drift < 0.01


def test_falling_values_count_like_climbing_ones() -> None:
    rising, falling = CriticRipeness(), CriticRipeness()
    for step in range(1000):
        rising.update(0.1 * step, 20.0)
        falling.update(-0.1 * step, 20.0)
    assert rising.drift == pytest.approx(falling.drift) and rising.drift > TRY_BELOW


def test_drift_does_not_depend_on_the_unit_of_reward() -> None:
    drifts = []
    for unit in (1.0, 1e-3, 1e3):
        ripeness = CriticRipeness()
        for step in range(2000):
            ripeness.update(unit * step, unit * step)
        drifts.append(ripeness.drift)
    assert drifts == pytest.approx([drifts[0]] * 3)


def test_critic_of_a_task_without_reward_divides_nothing_by_zero() -> None:
    ripeness = CriticRipeness()
    for _ in range(10):
        ripeness.update(0.0, 0.0)
    assert ripeness.drift == 0.0


def test_picks_pay_once_they_return_as_much() -> None:
    ripeness = CriticRipeness()
    for _ in range(4):
        ripeness.add_episode(2.0, True)
        ripeness.add_episode(1.0, False)
    assert not ripeness.picks_pay  # too few of each kind
    ripeness.add_episode(2.0, True)
    assert not ripeness.picks_pay
    ripeness.add_episode(1.0, False)
    assert ripeness.picks_pay
    for _ in range(20):  # only the latest count
        ripeness.add_episode(0.0, True)
    assert not ripeness.picks_pay


def played(without: list[float], picked: list[float], demonstrated: float, lowest: float = 0.0) -> CriticRipeness:
    ripeness = CriticRipeness(demonstrated_return=demonstrated, lowest_return=lowest)
    for episode_return in without:
        ripeness.add_episode(episode_return, False)
    for episode_return in picked:
        ripeness.add_episode(episode_return, True)
    return ripeness


def test_a_clone_far_below_the_demonstrations_has_little_to_lose() -> None:
    rare = [100.0] * 2 + [0.0] * 18  # 10 of 100
    assert played(rare, [0.0] * 5, 100.0).little_to_lose
    assert not played(rare, [0.0] * 5, 100.0).picks_pay
    assert not played(rare, [0.0] * 4, 100.0).little_to_lose
    assert not played(rare[:19], [0.0] * 5, 100.0).little_to_lose
    assert played([80.0, *rare], [0.0] * 5, 100.0).little_to_lose  # 13 of 100
    assert not played([100.0, 50.0, *rare], [0.0] * 5, 100.0).little_to_lose  # 16 of 100
    # One clone plays them all: its successes count for good, however long ago
    assert not played([100.0] * 7 + [0.0] * 33, [0.0] * 5, 100.0).little_to_lose
    assert not played(rare, [0.0] * 5, math.nan).little_to_lose  # of a file from before it was counted


def test_no_episode_is_worth_more_than_the_demonstrations() -> None:
    # Most of the human door's demonstrations fail: 124 on average. One success of 424 made up for a trial of failures
    lucky = [424.0] + [-20.0] * 19
    assert played(lucky, [-20.0] * 5, 124.0, -30.0).little_to_lose
    assert played(lucky, [-20.0] * 5, 124.0, -30.0).clone_return == pytest.approx((124 - 19 * 20) / 20)
    assert not played([424.0] * 2 + lucky, [-20.0] * 5, 124.0, -30.0).little_to_lose  # three of 22: 19 %
    # A clone as good as demonstrations of which a quarter succeeds, 100 on average, has what they have to lose
    quarter = [400.0, 0.0, 0.0, 0.0] * 5
    assert not played(quarter, [0.0] * 5, 100.0).little_to_lose
    # Nor with the picks: one lucky episode does not hide what the others cost
    assert not played([-50.0] * 20, [-72.0] * 4 + [1000.0], 0.0, -50.0).little_to_lose
    # Where nothing was demonstrated there is no cap
    ripeness = CriticRipeness()
    ripeness.add_episode(424.0, False)
    assert ripeness.clone_return == 424.0


def test_picks_that_cost_much_are_not_let_through_though_the_clone_is_worth_little() -> None:
    assert played([-50.0] * 20, [-51.0] * 5, 0.0, -50.0).little_to_lose
    assert not played([-50.0] * 20, [-100.0] * 5, 0.0, -50.0).little_to_lose
    # A clone as bad as its demonstrations has all that they have to lose
    assert not played([-50.0] * 20, [-51.0] * 5, -50.0, -50.0).little_to_lose
    assert not played([0.0] * 20, [-10.0] * 5, 0.0).little_to_lose
    # A bad episode is the zero of all that count, also once 20 others have followed
    for pairs in (10, 20):
        assert not played([-1000.0] + [-60.0, -30.0] * pairs, [-90.0] * 5, -20.0, -30.0).little_to_lose


def test_a_new_clone_begins_anew() -> None:
    ripeness = played([1.0] * 30, [2.0] * 30, 100.0)
    ripeness.begin(np.array([5.0, 1.0, 3.0]))
    assert not ripeness.with_picks and not ripeness.without_picks
    assert (ripeness.clone_episodes, ripeness.clone_return, ripeness.clone_lowest) == (0, 0.0, math.inf)
    assert (ripeness.demonstrated_return, ripeness.lowest_return) == (3.0, 1.0)


def test_trial_adds_up_rewards_and_draws_lots() -> None:
    trial, ended = CriticTrial(2), []
    np.random.seed(0)
    for step in range(400):
        dones = np.array([step % 2 == 1, step % 4 == 3])
        ended += trial.step(np.array([1.0, 10.0]), dones, on_trial=step > 3)
    assert sorted({episode_return for episode_return, _ in ended}) == [2.0, 40.0]
    picked = [picks for _, picks in ended]
    assert not any(picked[:3]) and 0.4 < np.mean(picked) < 0.6


def test_every_two_episodes_of_an_environment_one_of_each_kind() -> None:
    np.random.seed(0)
    trial, kinds = CriticTrial(3), [[], [], []]  # type: ignore[var-annotated]
    for step in range(1200):
        dones = np.array([step % period == period - 1 for period in (1, 2, 3)])
        trial.step(np.zeros(3), dones, on_trial=step >= 6)
        for i in np.flatnonzero(dones):
            kinds[i].append(bool(trial.picking[i]))
    for i, before in enumerate((6, 3, 2)):
        assert not any(kinds[i][:before])
        of_trial = kinds[i][before:]
        pairs = np.reshape(of_trial[: len(of_trial) // 2 * 2], (-1, 2))
        assert len(pairs) > 190 and (pairs.sum(axis=1) == 1).all()
        assert 0.35 < pairs[:, 0].mean() < 0.65  # which comes first is drawn by lot


def test_a_trial_that_was_broken_off_begins_with_a_new_pair() -> None:
    np.random.seed(0)
    one, pairs = np.ones(1, dtype=bool), []
    for _ in range(40):
        trial, kinds = CriticTrial(1), []
        for on_trial in (True, False, True, True):  # broken off after the first of a pair
            trial.step(np.zeros(1), one, on_trial)
            kinds.append(bool(trial.picking[0]))
        assert not kinds[1] and kinds[2] != kinds[3]
        pairs.append(kinds[2])
    assert 0.2 < np.mean(pairs) < 0.8


def test_several_environments_report_in_the_order_of_their_episodes_beginnings() -> None:
    """One environment's episodes are ten times as long: its share of the reported is that of those that began."""
    trial, reported = CriticTrial(2), []
    for step in range(1, 100):
        ended = trial.step(np.array([1.0, 1.0]), np.array([True, step % 10 == 0]), on_trial=True)
        reported += [episode_return for episode_return, _ in ended]
    # The two that began together, then the short ones; the last of these began before the long one that is still open
    assert reported == ([1.0, 10.0] + [1.0] * 9) * 9 + [1.0]


@pytest.mark.parametrize("n_envs", [2, 50])
def test_an_episode_that_never_ends_holds_no_more_than_twenty_per_environment_back(n_envs: int) -> None:
    trial, ended = CriticTrial(n_envs), 0
    for _ in range(100):
        ended += len(trial.step(np.ones(n_envs), np.arange(n_envs) > 0, on_trial=True))
    assert len(trial._waiting) == 20 * n_envs and ended == 100 * (n_envs - 1) - 20 * n_envs


def test_many_environments_wait_for_all_that_began_with_them() -> None:
    """Where more than 20 begin together, the shortest must not count before the others."""
    trial = CriticTrial(50)
    lengths = np.arange(50, 0, -1)
    reported = [trial.step(np.ones(50), lengths == step, on_trial=True) for step in range(1, 51)]
    # The first to begin are the last to end
    assert [len(episodes) for episodes in reported] == [0] * 49 + [50]
    assert [episode_return for episode_return, _ in reported[-1]] == list(lengths)


def test_an_episode_with_picks_does_not_count_once_the_trial_is_suspended() -> None:
    trial, one = CriticTrial(1), np.ones(1, dtype=bool)
    trial.picking[:] = True
    assert trial.step(np.ones(1), one, on_trial=False) == []
    assert trial.step(np.ones(1), one, on_trial=False) == [(1.0, False)]  # the clone alone always does


def test_trial_of_a_file_from_before_there_were_pairs() -> None:
    trial = CriticTrial(2)
    state = {name: value for name, value in vars(trial).items() if name in ("picking", "_returns")}
    loaded = CriticTrial.__new__(CriticTrial)
    loaded.__setstate__(state)
    assert loaded.step(np.ones(2), np.ones(2, dtype=bool), True) == [(1.0, False), (1.0, False)]
    first = loaded.picking.copy()
    loaded.step(np.ones(2), np.ones(2, dtype=bool), True)
    assert (loaded.picking == ~first).all()  # a pair has begun
