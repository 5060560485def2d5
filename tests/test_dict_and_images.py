"""Image and dictionary observations: features, framing, layout, demonstrations, and every policy alias."""

from __future__ import annotations

import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
)
from tiny import Mirror, metrics, mirror_demonstrations, same, tiny_model, weights, with_demonstrations

from sb3_swfp import SWFP

EXTRACTORS = {"vector": FlattenExtractor, "image": NatureCNN, "dict": CombinedExtractor}
#: NatureCNN's usual 512 features would make these tests slow
SMALL: dict[str, dict[str, Any]] = {
    "image": {"features_extractor_kwargs": {"features_dim": 8}},
    "dict": {"features_extractor_kwargs": {"cnn_output_dim": 8}},
}


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ("FlowPolicy", "vector"),
        ("FlowPolicy", "image"),
        ("FlowPolicy", "dict"),
        ("MlpPolicy", "vector"),
        ("CnnPolicy", "image"),
        ("MultiInputPolicy", "dict"),
    ],
)
def test_aliases(tmp_path: pathlib.Path, policy: str, kind: str) -> None:
    model = tiny_model(Mirror(kind), policy, policy_kwargs=SMALL.get(kind, {})).learn(26)
    for part in (model.actor, model.actor_average, model.critic, model.critic_target):
        assert type(part.features_extractor) is EXTRACTORS[kind]
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage) == (kind != "vector")
    model.save(tmp_path / "model")
    loaded = SWFP.load(tmp_path / "model", env=Mirror(kind))
    observation, _ = Mirror(kind).reset(seed=0)
    actions = [each.predict(observation, deterministic=True)[0] for each in (model, loaded)]
    np.testing.assert_array_equal(*actions)


def test_unknown_alias() -> None:
    with pytest.raises(ValueError, match="NoPolicy"):
        tiny_model(policy="NoPolicy")


@pytest.mark.parametrize("kind", ["image", "dict"])
@pytest.mark.parametrize("share", [False, True])
def test_features_extractors_train(kind: str, share: bool) -> None:
    """Each loss trains its own extractor; a shared one follows the actor alone, and copies are never trained."""
    model = tiny_model(
        Mirror(kind), jko_step_size=1.0, policy_kwargs={"share_features_extractor": share, **SMALL[kind]}
    )
    parts = (model.actor, model.critic, model.critic_target, model.actor_average)
    assert (model.actor.features_extractor is model.critic.features_extractor) == share
    before = [weights(part.features_extractor) for part in parts]
    model.learn(30)
    moved = [not same(old, weights(part.features_extractor)) for old, part in zip(before, parts, strict=True)]
    assert moved == [True] * 4
    optimised = {id(parameter) for group in model.critic.optimizer.param_groups for parameter in group["params"]}
    assert optimised.isdisjoint(map(id, model.actor.features_extractor.parameters()))
    frozen = (model.critic_target, model.actor_average, model.actor_reference)
    assert not any(parameter.requires_grad for part in frozen for parameter in part.parameters())


@pytest.mark.parametrize("kind", ["image", "dict"])
def test_demonstrations_made_before_the_wrapper(kind: str) -> None:
    """They are channel last, the model's observations channel first, and the clone still follows what it sees."""
    demonstrations = mirror_demonstrations(20, kind=kind)
    env = Mirror(kind)
    model = tiny_model(
        env,
        n_steps=3,
        policy_kwargs=SMALL[kind] | {"block_net_arch": [64], "n_candidates": 1},
        **with_demonstrations(demonstrations),
    )
    model.pretrain(gradient_steps=300, batch_size=32, learning_rate=2e-3, validation_fraction=0.0)
    span, errors = env.action_space.high - env.action_space.low, []  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=0)  # the first demonstration's states
    for _ in range(10):
        action, best = model.predict(observation, deterministic=True)[0], env.best_action()
        errors.append(np.abs(action - best) / span)
        observation = env.step(action)[0]
    assert np.mean(errors) < 0.12  # acting at random is off by a third
    model.learn(26)
    assert metrics(model)["demonstration_share"] == 1 / 8  # a tenth of 8, rounded
    assert model.replay_buffer is not None and model.replay_buffer.sample(32).discounts is not None


def test_n_steps_of_dictionaries_need_the_demonstration_buffer() -> None:
    with pytest.raises((AssertionError, ValueError), match="[Nn]-step"):
        tiny_model(Mirror("dict"), n_steps=3)
    tiny_model(Mirror("dict"), n_steps=3, policy_kwargs=SMALL["dict"], **with_demonstrations(None)).learn(24)


@pytest.mark.parametrize("channel_last", [False, True])
def test_image_layouts(channel_last: bool) -> None:
    def make() -> gym.Env:
        return SimpleMultiObsEnv(random_start=True, discrete_actions=False, channel_last=channel_last)

    model = tiny_model(make(), policy_kwargs=SMALL["dict"], buffer_size=100).learn(24)
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage) == channel_last
    assert model.observation_space["img"].shape == (1, 64, 64)  # type: ignore[index]
    stacked = VecFrameStack(DummyVecEnv([make]), n_stack=2, channels_order={"img": None, "vec": None})  # type: ignore[dict-item]
    assert tiny_model(stacked, policy_kwargs=SMALL["dict"], buffer_size=100).learn(24).num_timesteps == 24


def test_dictionaries_in_several_processes_normalised() -> None:
    # VecNormalize keeps the observations as they reach it: transposing them must come first, as for SB3's algorithms
    env = VecNormalize(VecTransposeImage(SubprocVecEnv([lambda: Mirror("dict")] * 2)), norm_obs_keys=["vector"])
    try:
        arguments = with_demonstrations(mirror_demonstrations(2, kind="dict"))
        model = tiny_model(env, policy_kwargs=SMALL["dict"], **arguments)
        model.pretrain(gradient_steps=3)
        model.learn(28)
        assert model.replay_buffer is not None
        batch: Any = model.replay_buffer.sample(64, env=env).observations
        assert batch["image"].max() > 100 and batch["vector"].abs().max() <= 10
    finally:
        env.close()


class Floats(gym.ObservationWrapper):
    """Images that come divided by 255 already."""

    def __init__(self) -> None:
        super().__init__(Mirror("image"))
        self.observation_space = spaces.Box(0.0, 1.0, (1, 36, 36))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return (np.moveaxis(observation, -1, 0) / 255.0).astype(np.float32)


def test_images_normalised_beforehand() -> None:
    """``normalize_images=False`` makes them images to the features extractor, which they are not otherwise."""
    arguments = {"normalize_images": False, **SMALL["image"]}
    model = tiny_model(Floats(), "CnnPolicy", policy_kwargs=arguments).learn(24)
    assert type(model.actor.features_extractor) is NatureCNN and not model.critic.normalize_images
    assert type(tiny_model(Floats()).actor.features_extractor) is FlattenExtractor


def test_nested_dictionaries_are_refused_as_sb3_does() -> None:
    class Nested(Mirror):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict({"outer": spaces.Dict({"inner": spaces.Discrete(4)})})

    with pytest.raises(NotImplementedError, match="Nested observation spaces are not supported"):
        tiny_model(Nested())


def test_images_reach_the_networks_between_zero_and_one() -> None:
    model = tiny_model(Mirror("image"), policy_kwargs=SMALL["image"])
    seen: list[th.Tensor] = []
    model.actor_average.features_extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.predict(Mirror("image").reset(seed=0)[0])
    assert 0.0 <= seen[0].min() and 0.1 < seen[0].max() <= 1.0 and seen[0].shape == (1, 1, 36, 36)
