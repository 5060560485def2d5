"""What cannot work is refused with a sentence that names it, and nothing is lost."""

from __future__ import annotations

import contextlib
import pathlib
import re
import sys
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import Mirror, mirror_demonstrations, same, tiny_model, weights, with_demonstrations

from sb3_swfp import SWFP, DemonstrationReplayBuffer, Demonstrations, baselines, load_demonstrations


def with_action_space(space: spaces.Space) -> Mirror:
    env = Mirror()
    env.action_space = space
    return env


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2), spaces.Dict({"a": spaces.Discrete(2)})],
)
def test_action_spaces_that_are_not_continuous(space: spaces.Space) -> None:
    # SB3's own refusal, an AssertionError
    with pytest.raises((ValueError, AssertionError), match=re.escape(str(space))):
        tiny_model(with_action_space(space))


@pytest.mark.parametrize("low, high", [(-np.inf, np.inf), (0.0, np.inf), (-np.inf, 0.0)])
def test_unbounded_action_spaces(low: float, high: float) -> None:
    with pytest.raises((ValueError, AssertionError), match="[Ff]inite|finite bounds|lower and upper bound"):
        tiny_model(with_action_space(spaces.Box(low, high, (2,))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"buffer_size": 0}, "buffer_size must be at least 1, got 0"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"policy_delay": 0}, "policy_delay must be at least 1, got 0"),
        ({"target_update_interval": 0}, "target_update_interval must be at least 1"),
        ({"critic_warmup": -1}, "critic_warmup must not be negative"),
        ({"target_candidates": 0}, "target_candidates must be at least 1"),
        ({"policy_kwargs": {"n_candidates": 2.5}}, "n_candidates must be a whole number, got 2.5"),
        ({"policy_kwargs": {"net_arch": {"pi": [32]}}}, 'net_arch must be .* the key "qf"'),
        ({"policy_kwargs": {"net_arch": 64}}, "net_arch must be a list of widths.* not 64"),
        ({"target_candidates": "all"}, "must be a whole number or \"auto\", got 'all'"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"gamma": float("nan")}, "gamma"),
        ({"tau": -0.1}, r"tau must lie in \[0, 1\], got -0.1"),
        ({"jko_epoch": 1}, "jko_epoch must be at least 2"),
        ({"jko_epoch": "many"}, "jko_epoch must be a number of block updates or \"auto\", got 'many'"),
        ({"confined": 0.5}, "confined must be True, False or .auto., got 0.5"),
        ({"confined": "some"}, "confined must be .*'some'"),
        ({"jko_step_size": 0.0}, "jko_step_size must be a positive number"),
        ({"jko_step_size": -1.0}, "jko_step_size must be a positive number"),
        ({"jko_step_size": float("nan")}, "jko_step_size must be a positive number"),
        ({"jko_step_size": "auto_"}, "jko_step_size must be a positive number"),
        ({"jko_step_size": "auto_0"}, "jko_step_size must be a positive number"),
        ({"jko_step_size": "auto_-1"}, "jko_step_size must be a positive number"),
        ({"jko_step_size": "fast"}, "jko_step_size .*'fast'"),
        ({"block_training": "random"}, 'block_training must be "parallel" or "sequential", not .random'),
        ({"w2": "approximate"}, 'w2 must be "paired", "exact" or "sinkhorn", not .approximate'),
        ({"ent_coef": -0.1}, "ent_coef"),
        ({"ent_coef": float("nan")}, "ent_coef"),
        ({"ent_coef": "high"}, "ent_coef .*'high'"),
        ({"ent_coef": "auto_0"}, "ent_coef must be greater than 0"),
        ({"ent_coef": "auto_x"}, "ent_coef"),
        ({"ent_coef": "automatic"}, "ent_coef"),
        ({"target_entropy": "low"}, "target_entropy"),
        ({"policy_kwargs": {"n_blocks": 0}}, "n_blocks must be at least 1, got 0"),
        ({"policy_kwargs": {"n_blocks": -3}}, "n_blocks must be at least 1, got -3"),
        ({"policy_kwargs": {"euler_steps": 0}}, "euler_steps must be at least 1, got 0"),
        ({"policy_kwargs": {"n_critics": 0}}, "n_critics must be at least 1, got 0"),
        ({"policy_kwargs": {"n_candidates": 0}}, "n_candidates must be at least 1, got 0"),
        ({"policy_kwargs": {"block_net_arch": []}}, "block_net_arch needs at least one hidden layer"),
        ({"policy_kwargs": {"block_net_arch": [8, 0]}}, "block_net_arch .*positive"),
        ({"policy_kwargs": {"net_arch": []}}, "at least one hidden layer"),
        (with_demonstrations(None, demonstration_share=1.5), "demonstration_share .*1.5"),
        (with_demonstrations(None, demonstration_share=-0.1), "demonstration_share .*-0.1"),
        (with_demonstrations(None, n_demonstrations=3), "n_demonstrations=3"),
    ],
    ids=str,
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(Mirror(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_steps": 0}, "gradient_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"validation_fraction": 1.0}, "validation fraction"),
        ({"validation_fraction": -0.1}, "validation fraction"),
        ({"demonstrations": 5}, "cannot load demonstrations from a int"),
        ({"demonstrations": None}, "pretrain.. needs demonstrations"),
    ],
    ids=str,
)
def test_impossible_arguments_of_pretrain(arguments: dict[str, Any], message: str) -> None:
    model = tiny_model(Mirror())
    before = weights(model.policy)
    with pytest.raises(ValueError, match=message):
        model.pretrain(**({"demonstrations": mirror_demonstrations(2)} | arguments))
    assert same(weights(model.policy), before) and not model.is_pretrained


@pytest.mark.parametrize("where", ["buffer", "pretrain"])
@pytest.mark.parametrize(
    ("env", "demonstrations", "message"),
    [
        ("Pendulum-v1", {}, r"(?=.*\(2,\))(?=.*\((1|3),\))"),
        (Mirror("image"), {}, r"(?=.*\(2,\))(?=.*\(1, 36, 36\))"),
        (Mirror("dict"), {}, r"(?=.*\(2,\))(?=.*'image', 'vector')"),
        (Mirror(), {"kind": "dict"}, "keys.*image.*vector"),
        (Mirror(low=-np.ones(3, np.float32), high=np.ones(3, np.float32), shape=(3,)), {}, r"(?=.*\(2,\))(?=.*\(3,\))"),
    ],
    ids=["pendulum", "image", "dict", "not dict", "actions"],
)
def test_demonstrations_of_another_environment(where: str, env: Any, demonstrations: Any, message: str) -> None:
    """Both shapes are named."""
    data = mirror_demonstrations(2, **demonstrations)
    with pytest.raises(ValueError, match=message):
        if where == "buffer":
            tiny_model(env, **with_demonstrations(data))
        else:
            tiny_model(env).pretrain(data)


@pytest.mark.parametrize("success", [float("nan"), "no", 2])
def test_success_that_is_neither_true_nor_false(success: Any) -> None:
    episodes = [replace(episode, success=success) for episode in mirror_demonstrations(1)]
    with pytest.raises(ValueError, match="episode 0: success must be True, False or None"):
        Demonstrations(episodes)


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Box(0, 100, (2,), np.int64), 0.5, "are float64, the environment's are int64"),
        (spaces.Box(-np.inf, np.inf, (2,)), 1e39, "are up to 1e.39, too large for float32"),
    ],
)
def test_observations_that_the_spaces_numbers_cannot_hold(space: spaces.Box, value: float, message: str) -> None:
    episodes = [replace(one, observations=np.full((len(one) + 1, 2), value)) for one in mirror_demonstrations(1)]
    with pytest.raises(ValueError, match=message):
        Demonstrations(episodes).for_spaces(space, Mirror().action_space)


def test_cloning_that_diverges_leaves_the_policy_as_it_was() -> None:
    model = tiny_model(Mirror())
    before = weights(model.policy)
    with pytest.raises(ValueError, match="Cloning diverged .*smaller learning_rate than 1000000"):
        model.pretrain(mirror_demonstrations(4), gradient_steps=20, learning_rate=1e6)
    assert same(weights(model.policy), before) and not model.is_pretrained and not model.policy.training


@pytest.mark.parametrize("cls", [SWFP, baselines.DPPO])
def test_weights_that_the_last_step_ruined_are_no_clone(cls: type[Any]) -> None:
    arguments: dict[str, Any] = {"n_steps": 16, "batch_size": 16} if cls is baselines.DPPO else {}
    model = cls("FlowPolicy", Mirror(), **arguments)
    with pytest.raises(ValueError, match="Cloning diverged"):
        model.pretrain(mirror_demonstrations(4), 1, learning_rate=np.inf, validation_fraction=0.0)
    assert not model.is_pretrained and all(value.isfinite().all() for value in model.policy.parameters())


def test_demonstrations_that_could_not_be_cloned_are_not_kept() -> None:
    model = tiny_model(Mirror(), **with_demonstrations(None))
    with pytest.raises(ValueError, match="Cloning diverged"):
        model.pretrain(mirror_demonstrations(4), gradient_steps=20, learning_rate=1e6)
    assert isinstance(model.replay_buffer, DemonstrationReplayBuffer) and model.replay_buffer.demonstrations is None


@pytest.mark.parametrize("success", [True, np.True_, 1.0, np.array(True), np.array([True]), th.tensor(True)])
def test_success_as_environments_tell_it(success: Any) -> None:
    episodes = [replace(episode, success=success) for episode in mirror_demonstrations(1)]
    assert Demonstrations(episodes)[0].success is True


def test_cloning_that_is_interrupted_leaves_the_policy_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("sb3_swfp.pretraining.BehaviourCloning.validate", interrupt)
    model = tiny_model(Mirror())
    before = weights(model.policy)
    with pytest.raises(KeyboardInterrupt):
        model.pretrain(mirror_demonstrations(4), gradient_steps=20)
    assert same(weights(model.policy), before) and not model.is_pretrained


@pytest.mark.parametrize("cls", [SWFP, baselines.IBRL, baselines.DPPO])
def test_a_policy_that_diverged_is_noticed_before_it_acts(cls: type[Any]) -> None:
    """Many environments return finite observations for an action that is not."""
    demonstrations = mirror_demonstrations(4)
    if cls is baselines.DPPO:
        model = cls("FlowPolicy", Mirror(), n_steps=16, batch_size=16, demonstrations=demonstrations)
    else:
        policy = "FlowPolicy" if cls is SWFP else "MlpPolicy"
        model = cls(policy, Mirror(), learning_starts=5, **with_demonstrations(demonstrations))
    model.pretrain(gradient_steps=5)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.fill_(np.nan)
    with contextlib.suppress(AttributeError):
        model.policy.can_judge.fill_(True)  # IBRL's clone would act alone
    with pytest.raises(ValueError, match="policy's action is NaN or infinite"):
        model.learn(40)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_demonstrations_that_are_not_finite(name: str, value: float) -> None:
    episodes = list(mirror_demonstrations(3))
    array = np.array(getattr(episodes[1], name), dtype=np.float32)
    array[4] = value
    episodes[1] = replace(episodes[1], **{name: array})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"episode 1, step 4: {name} holds {value}"):
        tiny_model(Mirror()).pretrain(Demonstrations(episodes))


class Broken(Mirror):
    """
    Returns a NaN or an infinity.

    :param part: ``"observation"``, ``"reward"`` or ``"first observation"``
    :param when: step of the episode
    :param value: what to return
    """

    def __init__(self, part: str, when: int, value: float, kind: str = "vector") -> None:
        super().__init__(kind)
        self.part, self.when, self.value, self.resets = part, when, value, 0

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        self.resets += 1
        return self._spoil(observation) if self.part == "first observation" else observation, info

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        if self.t == self.when and self.part == "observation":
            observation = self._spoil(observation)
        return observation, self.value if (self.part, self.t) == ("reward", self.when) else reward, *rest

    def _spoil(self, observation: Any) -> Any:
        vector = np.full(2, self.value, np.float32)
        return {**observation, "vector": vector} if self.kind == "dict" else vector


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("part", "when"),
    [("observation", 3), ("observation", 10), ("reward", 3), ("reward", 10), ("first observation", 0)],
    ids=["observation", "final observation", "reward", "final reward", "first observation"],
)
@pytest.mark.parametrize("normalised", [False, True])
def test_environments_that_break(part: str, when: int, value: float, normalised: bool) -> None:
    """The error names what and which environment, comes before anything is stored, and the networks are still whole."""
    env: Any = DummyVecEnv([Mirror, lambda: Broken(part, when, value)])
    model = tiny_model(VecNormalize(env) if normalised else env)
    # An episode's last observation reaches the model only after VecNormalize, which has clipped the infinity by then
    clipped = normalised and (part, when) == ("observation", 10) and np.isinf(value)
    refused = pytest.raises(ValueError, match=rf"NaN or infinity.*{part.split()[-1]}.*\[1\]")
    with warnings.catch_warnings(), contextlib.nullcontext() if clipped else refused:
        warnings.simplefilter("ignore", RuntimeWarning)
        model.learn(30)
    buffer: Any = model.replay_buffer
    for name in ("observations", "next_observations", "rewards"):
        assert np.isfinite(getattr(buffer, name)).all()
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


def test_dictionaries_name_the_key() -> None:
    model = tiny_model(Broken("observation", 3, np.nan, "dict"))
    with pytest.raises(ValueError, match="NaN or infinity: vector of environment"):
        model.learn(10)


def test_actions_outside_the_bounds_are_clipped_with_one_warning() -> None:
    episodes = list(mirror_demonstrations(3))
    actions = episodes[0].actions.copy()
    actions[:4, 0] = 7.0
    data = Demonstrations([replace(episodes[0], actions=actions), *episodes[1:]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = tiny_model(Mirror(), **with_demonstrations(data))
        model.pretrain(gradient_steps=5)
    assert ["clipped 4 of 60" in str(warning.message) for warning in caught] == [True]
    buffer: Any = model.replay_buffer
    np.testing.assert_array_equal(buffer.demonstrations[0].actions[:4, 0], model.action_space.high[0])
    np.testing.assert_array_equal(data[0].actions[:4, 0], 7.0)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "pickle"])
def test_damaged_files(tmp_path: pathlib.Path, damage: str) -> None:
    path = tmp_path / "demonstrations.npz"
    mirror_demonstrations(3).save(path)
    if damage == "pickle":
        np.savez(path, observations=np.array([{}], dtype=object), allow_pickle=True)
    else:
        content = {"empty": b"", "truncated": path.read_bytes()[:-200], "text": b"no archive"}[damage]
        path.write_bytes(content)
    for use in (load_demonstrations, lambda source: tiny_model(Mirror(), **with_demonstrations(source))):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            use(str(path))


def test_no_such_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.npz"):
        tiny_model(Mirror(), **with_demonstrations(str(tmp_path / "absent.npz")))
    with pytest.raises(ValueError, match="supported formats"):
        tiny_model(Mirror()).pretrain("demonstrations.csv")


def test_missing_optional_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=re.escape('pip install "sb3-swfp[minari]"')):
        tiny_model(Mirror()).pretrain("adroit/door-expert-v0")


@pytest.mark.parametrize("what", ["n_blocks", "learning_rate"])
def test_unknown_arguments(what: str) -> None:
    """Architecture lives in policy_kwargs, everything else does not."""
    with pytest.raises(TypeError, match=what if what == "n_blocks" else "multiple values|unexpected"):
        if what == "n_blocks":
            tiny_model(Mirror(), n_blocks=3)
        else:
            tiny_model(Mirror(), policy_kwargs={"learning_rate": 1e-3})
