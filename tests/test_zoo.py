"""RL Zoo: registration, the search space, YAML entries with demonstrations, bad input."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import tiny

pytest.importorskip("rl_zoo3", reason='needs RL Zoo: pip install "sb3-swfp[zoo]"')
optuna = pytest.importorskip("optuna")

from sb3_swfp import SWFP  # noqa: E402
from sb3_swfp.zoo import config_path, register  # noqa: E402
from sb3_swfp.zoo.registration import ALGORITHMS, algorithm_class  # noqa: E402
from sb3_swfp.zoo.tuning import CONVERTERS, SAMPLERS  # noqa: E402

ROOT = Path(__file__).parents[1]
HOOK = ROOT / "sb3_swfp" / "zoo" / "startup" / "sb3_swfp_zoo_hook.py"


def zoo(*arguments: str, cwd: Path, code: int = 0, **variables: str) -> str:
    """
    Run a command of ``python -m sb3_swfp.zoo``.

    :param code: exit code that is expected (any but 0 if it is 1)
    :param variables: more environment variables
    :return: its output and error messages
    """
    return python("-m", "sb3_swfp.zoo", *arguments, cwd=cwd, code=code, **variables)


def python(*arguments: str, cwd: Path, code: int = 0, **variables: str) -> str:
    command = [sys.executable, *arguments]
    environment = tiny.subprocess_environment() | variables
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    output = result.stdout + result.stderr
    assert (result.returncode != 0) == (code != 0), output[-3000:]
    return output


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_register_completes_the_zoo_s_own_dictionaries(algorithm: str) -> None:
    register()
    register()
    from rl_zoo3 import hyperparams_opt, utils

    assert utils.ALGOS[algorithm] is algorithm_class(algorithm)
    assert hyperparams_opt.HYPERPARAMS_SAMPLER[algorithm] is SAMPLERS[algorithm]
    assert hyperparams_opt.HYPERPARAMS_CONVERTER[algorithm] is CONVERTERS[algorithm]
    assert config_path(algorithm) == ROOT / "hyperparams" / f"{algorithm}.yml"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="No hyperparameters for sac"):
        config_path("sac")


def test_hook_imports_nothing_until_the_zoo_is_imported() -> None:
    script = f"""
import sys
before = set(sys.modules)
sys.path.insert(0, {str(HOOK.parent)!r})
import sb3_swfp_zoo_hook
foreign = {{name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names}}
assert foreign == {{"sb3_swfp_zoo_hook"}}, foreign
"""
    # -S, since the hook may be installed here and have run already
    subprocess.run([sys.executable, "-S", "-c", script], check=True)


@pytest.mark.parametrize(
    ("algorithm", "with_demonstrations", "her"),
    # DPPO has no replay buffer
    [(name, *kinds) for name in ALGORITHMS for kinds in product((False, True), repeat=2) if name != "dppo"]
    + [("dppo", False, False)],
)
def test_every_point_of_the_search_space_makes_a_model(algorithm: str, with_demonstrations: bool, her: bool) -> None:
    kwargs = {"demonstrations": "demos.npz"} if with_demonstrations else {}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    small = {"n_steps": 16} if algorithm == "dppo" else {"buffer_size": 10}
    cls: Any = algorithm_class(algorithm)
    for _ in range(10):
        trial = study.ask()
        arguments = SAMPLERS[algorithm](trial, 1, 1, {"using_her_replay_buffer": her, "her_kwargs": kwargs})
        assert ("confined" in arguments) == (algorithm == "swfp" and with_demonstrations)
        buffer_kwargs: dict[str, Any] = arguments.pop("replay_buffer_kwargs", {})
        # IBRL's buffer mixes demonstrations in by their number
        assert ("demonstration_share" in buffer_kwargs) == (with_demonstrations and algorithm != "ibrl")
        assert ("n_sampled_goal" in buffer_kwargs) == her
        if buffer_kwargs:
            assert buffer_kwargs.get("demonstrations") == kwargs.get("demonstrations")
        cls(next(iter(cls.policy_aliases)), "Pendulum-v1", **small, **arguments)
        # What a study stores, and --trial-id reads, converts to the same arguments
        converted = CONVERTERS[algorithm](trial.params)
        assert converted.pop("replay_buffer_kwargs", {}).items() <= buffer_kwargs.items()
        assert converted == arguments


def offline_to_online(folder: Path) -> Path:
    """A YAML file whose one entry clones demonstrations, keeps them in play, and goes on online."""
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    tiny.record(env, 3, lambda _: env.action_space.sample()).save(folder / "demos.npz")
    path = folder / "offline_to_online.yml"
    path.write_text(
        """
Pendulum-v1:
  n_timesteps: 250
  policy: FlowPolicy
  learning_starts: 50
  batch_size: 32
  replay_buffer_class: DemonstrationReplayBuffer
  replay_buffer_kwargs: "dict(demonstrations='demos.npz', demonstration_share=0.25)"
  callback:
    - sb3_swfp.callbacks.PretrainCallback:
        gradient_steps: 30
"""
    )
    return path


def test_one_yaml_entry_goes_from_demonstrations_to_online(tmp_path: Path) -> None:
    config = offline_to_online(tmp_path)
    command = ("train", "--algo", "swfp", "--env", "Pendulum-v1", "-conf", str(config), "--eval-freq", "-1")
    output = zoo(*command, "--log-interval", "1", "--save-replay-buffer", cwd=tmp_path)
    assert "Cloned the demonstrations in 30 steps" in output
    assert re.search(r"demonstration_share\s*\| 0.25", output)
    folder = tmp_path / "logs" / "swfp" / "Pendulum-v1_1"
    assert SWFP.load(folder / "Pendulum-v1.zip").is_pretrained
    # Resumed with the saved buffer: nothing is cloned again
    output = zoo(*command, "-i", str(folder / "Pendulum-v1.zip"), cwd=tmp_path)
    assert "Loading replay buffer" in output and "Cloned" not in output


def test_two_workers_share_a_study_and_its_trial_retrains(tmp_path: Path) -> None:
    config = offline_to_online(tmp_path)
    storage = ("--storage", f"sqlite:///{tmp_path / 'study.db'}", "--study-name", "swfp")
    train = ("train", "--algo", "swfp", "--env", "Pendulum-v1", "-conf", str(config), "-n", "220", "--eval-freq", "-1")
    search = (*train, *storage, "-optimize", "--max-total-trials", "4", "--n-evaluations", "1", "--no-optim-plots")
    command = [sys.executable, "-m", "sb3_swfp.zoo", *search, "--eval-episodes", "1"]
    environment = tiny.subprocess_environment()
    # Two workers that both find no tables in a new SQLite file get into each other's way (docs/rl_zoo.md)
    optuna.create_study(study_name="swfp", storage=storage[1], direction="maximize")
    workers = [
        subprocess.Popen([*command, "--seed", str(seed)], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        for seed in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    study = optuna.load_study(study_name="swfp", storage=storage[1])
    # Both may ask for a trial at the same moment, so there can be one more
    assert len(study.trials) in (4, 5) and study.best_trial.params["demonstration_share"] > 0.0
    output = zoo(
        *train, *storage, "--trial-id", str(max(study.best_trial.number, 1)), "--log-interval", "1", cwd=tmp_path
    )
    share = study.trials[max(study.best_trial.number, 1)].params["demonstration_share"]
    assert f"'demonstration_share': {share}" in output and "Cloned the demonstrations" in output


def test_a_diverging_trial_is_pruned_and_the_study_goes_on(tmp_path: Path) -> None:
    # The first point of this search space drives every weight to infinity
    script = """
from sb3_swfp.zoo import register
register()
from rl_zoo3 import hyperparams_opt, train
def sample(trial, *_):
    return {"learning_rate": 1e30 if trial.number == 0 else 1e-3}
hyperparams_opt.HYPERPARAMS_SAMPLER["swfp"] = sample
train.train()
"""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    command = ["--algo", "swfp", "--env", "Pendulum-v1", "-optimize", "--n-trials", "2", "-n", "220", "--seed", "0"]
    command += ["--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    output = python("-c", script, *command, "--storage", storage, "--study-name", "swfp", cwd=tmp_path)
    assert "NaN" in output
    trials = optuna.load_study(study_name="swfp", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["PRUNED", "COMPLETE"]


def test_weights_and_biases(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs Weights & Biases: pip install wandb")
    command = ("train", "--algo", "swfp", "--env", "Pendulum-v1", "-n", "410", "--eval-freq", "-1", "--track")
    output = zoo(*command, "--log-interval", "1", cwd=tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    assert "Saving to logs/swfp/" in output
    (record,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/q_mean" in record.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "CartPole-v1"], "SWFP needs continuous actions"),
        (["--env", "Pendulum-v1", "-params", "jko_stepsize:0.1"], "did you mean 'jko_step_size'"),
        (["--env", "Pendulum-v1", "-i", "sac.zip"], "cannot continue from sac.zip"),
        (["--env", "Pendulum-v1", "-i", "truncated.zip"], "cannot continue from truncated.zip"),
        (["--env", "Pendulum-v1", "-conf", "missing.yml"], "nowhere.npz"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    from stable_baselines3 import SAC

    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs={"net_arch": [8]}).save(tmp_path / "sac.zip")
    whole = (tmp_path / "sac.zip").read_bytes()
    (tmp_path / "truncated.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "missing.yml").write_text(
        "Pendulum-v1:\n  n_timesteps: 100\n  policy: FlowPolicy\n"
        "  callback:\n    - sb3_swfp.callbacks.PretrainCallback:\n        demonstrations: nowhere.npz\n"
    )
    output = zoo("train", "--algo", "swfp", *arguments, "-n", "100", cwd=tmp_path, code=1)
    assert "Traceback" not in output
    (line,) = (line for line in output.splitlines() if line.startswith("swfp: "))
    assert message in line


def test_module_command_names_its_commands(tmp_path: Path) -> None:
    assert "usage: python -m sb3_swfp.zoo {train," in zoo("trian", cwd=tmp_path, code=1)


def test_other_algorithms_are_left_alone(tmp_path: Path) -> None:
    output = zoo("train", "--algo", "sac", "--env", "CartPole-v1", "-n", "10", cwd=tmp_path, code=1)
    assert "Traceback" in output and "swfp" not in output.splitlines()[-1]


def test_hook_survives_a_broken_registration(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("hook_under_test", HOOK)
    assert spec is not None and spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    finders = list(sys.meta_path)
    try:
        spec.loader.exec_module(hook)

        class Broken:
            def create_module(self, spec: object) -> None:
                return None

            def exec_module(self, module: Any) -> None:
                module.__name__ = "rl_zoo3.utils"  # without ALGOS

        hook._Loader(Broken()).exec_module(type(sys)("rl_zoo3.utils"))
    finally:
        sys.meta_path[:] = finders
    assert "sb3_swfp: could not register with RL Zoo" in capsys.readouterr().err
