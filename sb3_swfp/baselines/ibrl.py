"""IBRL: imitation bootstrapped reinforcement learning (Hu et al., arXiv 2311.02198)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_swfp.acting import noise_of_states
from sb3_swfp.baselines.gaussian import Batch, GaussianAlgorithm, GaussianPolicy
from sb3_swfp.bounds import bound_action
from sb3_swfp.checks import check_actions
from sb3_swfp.cloning import CloningAlgorithm
from sb3_swfp.demonstrations import Demonstrations
from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer, Samples
from sb3_swfp.policies import FlowActor, track

#: Exploration noise of the actor, and where its noise is clipped in the target and in the actor's loss
NOISE_STD, _NOISE_CLIP = 0.1, 0.3


class PreloadedReplayBuffer(DemonstrationReplayBuffer):
    """
    Demonstrations as if they were the first of the online data: their share of a batch is their share of all data.

    It takes :class:`DemonstrationReplayBuffer`'s arguments but for ``demonstration_share``.
    """

    @property
    def demonstration_share(self) -> float:
        """Share of each batch that demonstrations make up, in [0, 1]."""
        n_demonstrations = 0 if self._demonstrations is None else self._demonstrations.n_transitions
        n_online = self._online.size() * self.n_envs
        return n_demonstrations / max(n_demonstrations + n_online, 1)

    @demonstration_share.setter
    def demonstration_share(self, value: float) -> None:
        """The parent's constructor sets its default, which is of no use here."""

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Samples:  # type: ignore[override]
        """As the parent's."""
        self._demonstration_share = self.demonstration_share
        return super().sample(batch_size, env)


class DropoutActor(BasePolicy):
    """
    Deterministic actor with dropout and a tanh, as IBRL has it (actor regularisation, section 4.3 of the paper).

    :param net_arch: Hidden widths
    :param dropout: Probability of dropping a hidden unit
    :param kwargs: Of SB3's ``BasePolicy``: spaces, features extractor, ...
    """

    def __init__(self, net_arch: list[int], dropout: float, features_dim: int, **kwargs: Any):
        super().__init__(squash_output=True, **kwargs)
        action_dim = get_action_dim(self.action_space)
        layers = create_mlp(features_dim, action_dim, net_arch, squash_output=True)
        with_dropout = [(layer, nn.Dropout(dropout)) if isinstance(layer, nn.ReLU) else (layer,) for layer in layers]
        self.net = nn.Sequential(*(layer for group in with_dropout for layer in group))

    def forward(self, observations: PyTorchObs, noise_std: float = 0.0, noise_clip: float | None = None) -> th.Tensor:
        """
        :param observations: Observations
        :param noise_std: Standard deviation of the noise that is added
        :param noise_clip: Largest noise
        :return: Scaled actions, ``[B, d]``
        """
        mean = self.net(self.extract_features(observations, self.features_extractor))
        if noise_std == 0.0:
            return mean
        noise = noise_std * th.randn_like(mean)
        if noise_clip is not None:
            noise = noise.clamp(-noise_clip, noise_clip)
        # Straight through the clipping: the gradient at the bound would otherwise vanish
        noisy = mean + noise
        return noisy + (noisy.clamp(-1.0, 1.0) - noisy).detach()

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation)


class IBRLPolicy(GaussianPolicy):
    """
    A frozen clone and a trained actor propose, the target critics pick.

    :param proposal: ``"soft"``: by ``softmax(beta Q / scale)``; ``"argmax"``: the better one
    :param beta: Inverse temperature of the soft form, for Q in units of the critics' scale
    :param actor_dropout: Dropout of the actor
    :param n_blocks: Number of flow blocks of the clone
    :param block_net_arch: Hidden widths of every block
    :param args: As :class:`~sb3_swfp.baselines.gaussian.GaussianPolicy`
    :param kwargs: Likewise
    """

    actor_target: DropoutActor
    clone: FlowActor
    is_cloned: th.Tensor
    #: Whether the critics were updated; until then they can't judge, and the clone acts alone
    can_judge: th.Tensor

    def __init__(
        self,
        *args: Any,
        proposal: str = "soft",
        beta: float = 10.0,
        actor_dropout: float = 0.5,
        n_blocks: int = 5,
        block_net_arch: list[int] | None = None,
        **kwargs: Any,
    ):
        if proposal not in ("soft", "argmax"):
            raise ValueError(f'proposal must be "soft" or "argmax", not {proposal!r}')
        self.proposal, self.beta, self.actor_dropout = proposal, beta, actor_dropout
        self.clone_kwargs: dict[str, Any] = dict(n_blocks=n_blocks, block_net_arch=block_net_arch)
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.actor_target = self.make_actor()
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.actor_target.requires_grad_(False)
        self.clone = FlowActor(**self._update_features_extractor(self.shared_kwargs | self.clone_kwargs)).to(
            self.device
        )
        self.register_buffer("is_cloned", th.tensor(False))
        self.register_buffer("can_judge", th.tensor(False))

    def make_actor(self) -> DropoutActor:
        kwargs = self._update_features_extractor(self.shared_kwargs)
        return DropoutActor(self.actor_arch, self.actor_dropout, **kwargs).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = dict(proposal=self.proposal, beta=self.beta, actor_dropout=self.actor_dropout)
        return super()._get_constructor_parameters() | own | self.clone_kwargs

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: True for training, with dropout in both actors, as the authors have it
        """
        super().set_training_mode(mode)
        self.actor_target.set_training_mode(mode)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        proposed = self.actor(observation)
        if not bool(self.is_cloned):
            return proposed
        cloned = self.cloned_actions(observation, deterministic)
        return self.choose(observation, proposed, cloned, deterministic) if bool(self.can_judge) else cloned

    def cloned_actions(self, observations: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observations: Observations
        :param deterministic: Noise from the state instead of fresh noise
        :return: The clone's actions, ``[B, d]``
        """
        features = self.clone.features(observations)
        if deterministic:
            start = noise_of_states(features, 1, self.clone.cascade.action_dim)
        else:
            start = self.clone.noise(len(features))
        return bound_action(self.clone.cascade.integrate(features, start).particles[-1])

    def choose(
        self, observations: PyTorchObs, proposed: th.Tensor, cloned: th.Tensor, greedy: bool = False
    ) -> th.Tensor:
        """
        One of two actions for each state, by the minimum of two random target critics.

        :param observations: Observations
        :param proposed: The trained actor's actions, ``[B, d]``
        :param cloned: The clone's, ``[B, d]``
        :param greedy: Take the better one and judge by all critics, also in the soft form: a deterministic action
        :return: Actions, ``[B, d]``
        """
        members = None if greedy else th.randperm(self.critic_target.n_critics)[:2]
        features = self.critic_target.features(observations)
        values = th.stack(
            [self.critic_target.q_values(features, actions, members).amin(dim=0) for actions in (proposed, cloned)]
        )
        if self.proposal == "argmax" or greedy:
            take_clone = values[1] > values[0]
        else:
            odds = self.beta * (values[1] - values[0]) / self.critic_target.scale
            take_clone = th.rand_like(odds) < th.sigmoid(odds)
        return th.where(take_clone.unsqueeze(-1), cloned, proposed)


class IBRL(CloningAlgorithm, GaussianAlgorithm):
    """
    A frozen clone and a deterministic actor (TD3's) propose an action each; the critics pick, when acting and in the
    target.

    Defaults are the authors' for RoboMimic's Can from states (paper, appendix; their configuration of that task):
    3-step returns, 5 critics and an actor with dropout 0.5, three hidden layers of 1,024, learning rate 1e-4, ``tau``
    0.01, every second environment step five critic updates and one of the actor, exploration noise 0.1, soft choice
    with ``beta`` 10, and a buffer that starts with the demonstrations and 40 episodes of the clone (here: 8,000 steps).
    Two differences: their ``beta`` is for rewards of 0 and 1, so here it multiplies Q in units of the demonstrations'
    returns; and the clone is this package's flow, the same as SWFP's.

    :param policy: ``"MlpPolicy"`` (or SB3's aliases)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: Adam's learning rate
    :param learning_starts: Steps before learning starts; the clone takes them, unless the critics have learned before
    :param tau: Polyak coefficient of target critics and target actor
    :param train_freq: Update the model every so many steps
    :param gradient_steps: Critic updates at a time
    :param policy_delay: Critic updates per actor update
    :param n_steps: Length of n-step returns
    :param action_noise: Exploration noise; normal with standard deviation 0.1 when omitted
    :param replay_buffer_class: Replay buffer class; :class:`PreloadedReplayBuffer` when omitted
    :param critic_scale: As :class:`~sb3_swfp.baselines.gaussian.GaussianAlgorithm`
    :param policy_kwargs: Arguments of :class:`IBRLPolicy`
    :param kwargs: As :class:`~sb3_swfp.baselines.gaussian.GaussianAlgorithm`
    :raises ValueError: for impossible arguments
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": IBRLPolicy,
        "CnnPolicy": IBRLPolicy,
        "MultiInputPolicy": IBRLPolicy,
    }
    policy: IBRLPolicy

    def __init__(
        self,
        policy: str | type[IBRLPolicy],
        env: GymEnv | str,
        *,
        learning_rate: Any = 1e-4,
        learning_starts: int = 8_000,
        tau: float = 0.01,
        train_freq: int | tuple[int, str] = 2,
        gradient_steps: int = 5,
        policy_delay: int = 5,
        n_steps: int = 3,
        action_noise: ActionNoise | None = None,
        critic_scale: float | str = "auto",
        replay_buffer_class: type[ReplayBuffer] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            learning_starts=learning_starts,
            tau=tau,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            policy_delay=policy_delay,
            n_steps=n_steps,
            action_noise=action_noise,
            replay_buffer_class=PreloadedReplayBuffer if replay_buffer_class is None else replay_buffer_class,
            ent_coef=0.0,
            critic_scale=critic_scale,
            policy_kwargs=dict(net_arch=[1024, 1024, 1024], n_critics=5) | (policy_kwargs or {}),
            **kwargs,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.action_noise is None:
            d = self.action_dim
            self.action_noise = NormalActionNoise(np.zeros(d), NOISE_STD * np.ones(d))

    def _network_to_clone(self) -> FlowActor:
        return self.policy.clone.requires_grad_(True)

    def _after_cloning(self, data: Demonstrations) -> None:
        self.policy.clone.requires_grad_(False).set_training_mode(False)
        self.policy.is_cloned.fill_(True)
        self.policy.can_judge.fill_(False)  # the critics know nothing of this clone yet
        self._scale_critics()

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        :param gradient_steps: Critic updates to do, with an actor update after every ``policy_delay`` of them; the
            critics may judge from here on
        :param batch_size: Minibatch size
        """
        super().train(gradient_steps, batch_size)
        self.policy.can_judge.fill_(True)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self.is_pretrained:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert self._last_obs is not None
        observations, _ = self.policy.obs_to_tensor(self._last_obs)
        with th.no_grad():
            self.policy.set_training_mode(False)
            chosen = cloned = self.policy.cloned_actions(observations)
            if bool(self.policy.can_judge):
                # Noise belongs to the actor's proposal, and is judged with it: the clone's actions stay as they are
                proposed = self.policy.actor(observations).cpu().numpy()
                if action_noise is not None:
                    proposed = np.clip(proposed + np.asarray(action_noise()), -1.0, 1.0)
                noisy = th.as_tensor(proposed, dtype=th.float32, device=self.device)
                chosen = self.policy.choose(observations, noisy, cloned)
        scaled = chosen.cpu().numpy().reshape(-1, *self.action_space.shape)
        check_actions(scaled, self.num_timesteps)
        return self.policy.unscale_action(scaled), scaled

    def _next_values(self, observations: PyTorchObs, ent_coef: float) -> th.Tensor:
        actions = self.policy.actor_target(observations, NOISE_STD, _NOISE_CLIP)
        if self.is_pretrained:
            actions = self.policy.choose(observations, actions, self.policy.cloned_actions(observations))
        pair = th.randperm(self.critic.n_critics)[:2]
        return self.critic_target(observations, actions, pair).amin(dim=0)

    def _train_actor(self, batch: Batch, ent_coef: float) -> dict[str, Any]:
        actions = self.actor(batch.observations, NOISE_STD, _NOISE_CLIP)
        with th.no_grad():
            features = self.critic.features(batch.observations)
        loss = -self.critic.q_values(features, actions).amin(dim=0).mean() / self.critic.scale
        self.actor.optimizer.zero_grad()
        loss.backward()
        self.actor.optimizer.step()
        track(self.actor, self.policy.actor_target, self.tau)
        return {"actor_loss": loss.detach()}
