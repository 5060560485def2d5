"""RL Zoo's unmodified commands in a fresh virtual environment, for a normal and for an editable install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import hub
import pytest

pytest.importorskip("rl_zoo3", reason='needs RL Zoo: pip install "sb3-swfp[zoo]"')
pytest.importorskip("setuptools", reason="needs setuptools to build the package")

from sb3_swfp.zoo.registration import ALGORITHMS  # noqa: E402

ROOT = Path(__file__).parents[1]
TRAIN = ("-m", "rl_zoo3.train", "--algo", "swfp", "--env", "Pendulum-v1")


class Install:
    """
    A virtual environment with this package, on top of the packages that the tests run with.

    :param folder: Where to make it
    :param editable: Whether the package is installed in place
    """

    def __init__(self, folder: Path, editable: bool):
        self.editable, self.python = editable, folder / "venv" / "bin" / "python"
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        source = ROOT
        if not editable:  # building leaves folders behind
            source = folder / "source"
            ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "runs", "__pycache__")
            shutil.copytree(ROOT, source, ignore=ignored)
        venv.create(folder / "venv", with_pip=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        # A line that names a folder makes its packages importable, but runs none of its start-up hooks: what registers
        # SWFP below is the hook of this install alone
        others = [path for path in sys.path if path.endswith("site-packages")]
        (site / "zz_the_tests_packages.pth").write_text("\n".join(others) + "\n")
        self.site = site
        # Python's own old setuptools would hide the one that the tests run with, and can't build wheels
        self.run("-m", "pip", "uninstall", "--quiet", "--yes", "setuptools")
        flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--ignore-installed"]
        self.run("-m", "pip", "install", *flags, *(["-e"] if editable else []), str(source))

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """
        :param arguments: Arguments of the environment's Python
        :param code: Exit code that is expected (any but 0 if it is 1)
        :param environment: More environment variables
        :return: What the command wrote
        """
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        variables = inherited | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy"} | environment
        result = subprocess.run(
            [str(self.python), *arguments],
            cwd=self.work,
            env=variables,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        output = result.stdout + result.stderr
        assert (result.returncode != 0) == (code != 0), f"{arguments}\n{output[-3000:]}"
        return output


@pytest.fixture(scope="module", params=["normal", "editable"])
def install(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
    installed = Install(tmp_path_factory.mktemp(request.param), request.param == "editable")
    yield installed
    installed.run("-m", "pip", "uninstall", "--quiet", "--yes", "sb3-swfp")
    left = [path.name for path in installed.site.glob("*swfp*")]
    assert left == [], f"uninstalling left {left}"


def test_the_installed_package_is_complete(install: Install) -> None:
    script = "import sb3_swfp; from sb3_swfp.zoo import config_path; print(sb3_swfp.__file__)"
    where, *configs = install.run("-c", f"{script}\nfor name in {list(ALGORITHMS)}: print(config_path(name))").split()
    assert Path(where).is_relative_to(ROOT if install.editable else install.site)
    for name, config in zip(ALGORITHMS, configs, strict=True):
        assert Path(config).read_bytes() == (ROOT / "hyperparams" / f"{name}.yml").read_bytes()


def test_hook_costs_less_than_a_millisecond(install: Install) -> None:
    costs = []
    for _ in range(10):
        report = install.run("-X", "importtime", "-c", "pass")
        lines = [line for line in report.splitlines() if "swfp" in line and "__editable__" not in line]
        assert lines, "the hook did not run"
        assert not any(name in report for name in ("torch", "stable_baselines3", "gymnasium", "numpy", "rl_zoo3"))
        costs.append(sum(int(line.removeprefix("import time:").split("|")[0]) for line in lines))
    assert min(costs) < 1000  # microseconds


def test_hook_can_be_switched_off(install: Install) -> None:
    output = install.run(*TRAIN, "-n", "10", code=1, SB3_SWFP_ZOO_HOOK="0")
    assert "invalid choice: 'swfp'" in output


def test_the_zoo_s_commands(install: Install) -> None:
    output = install.run(*TRAIN, "-n", "260", "--eval-freq", "130", "--eval-episodes", "2", "--seed", "1", "-P")
    assert "Saving to logs/swfp/Pendulum-v1_1" in output
    assert (install.work / "logs/swfp/Pendulum-v1_1/best_model.zip").exists()
    of_the_run = ("--algo", "swfp", "--env", "Pendulum-v1", "-f", "logs/")
    assert "Mean reward" in install.run("-m", "rl_zoo3.enjoy", *of_the_run, "-n", "200", "--no-render")
    install.run("-m", "rl_zoo3.record_video", *of_the_run, "-n", "20")
    assert list(install.work.glob("logs/swfp/Pendulum-v1_1/videos/*.mp4"))
    # Continue from the saved model; the console script, here from the tests' own environment, does the same
    resume = ("-i", "logs/swfp/Pendulum-v1_1/Pendulum-v1.zip", "-n", "120", "--eval-freq", "-1")
    assert "Loading pretrained agent" in install.run(*TRAIN, *resume)
    console = Path(sysconfig.get_path("scripts")) / "rl_zoo3"
    install.run(str(console), "train", *TRAIN[2:], "-n", "120", "--eval-freq", "-1")
    study = ("--storage", "sqlite:///study.db", "--study-name", "swfp", "-n", "110", "--eval-episodes", "1")
    tuned = install.run(
        *TRAIN, *study, "-optimize", "--n-trials", "2", "--n-jobs", "2", "--sampler", "tpe", "--pruner", "median",
        "--n-evaluations", "1", "--no-optim-plots",
    )  # fmt: skip
    assert "Best trial:" in tuned
    assert "Loading from Optuna study" in install.run(*TRAIN, *study, "--trial-id", "1", "--eval-freq", "-1")
    install.run("-m", "rl_zoo3.plots.plot_train", "-a", "swfp", "-e", "Pendulum-v1", "-f", "logs/")
    table = install.run(
        "-m", "rl_zoo3.plots.all_plots", "-a", "swfp", "-e", "Pendulum-v1", "-f", "logs/", "--no-display", "-o", "all"
    )
    assert "SWFP" in table.upper()


def test_fine_tuning_a_clone(install: Install) -> None:
    pytest.importorskip("gymnasium_robotics")
    script = """
import gymnasium as gym, gymnasium_robotics, numpy as np
from sb3_swfp import SWFP, DemonstrationReplayBuffer, Demonstrations, Episode
gym.register_envs(gymnasium_robotics)
env = gym.make("AdroitHandDoorSparse-v1", max_episode_steps=10)
observations, actions = [env.reset(seed=0)[0]], []
for _ in range(10):
    actions.append(env.action_space.sample())
    observations.append(env.step(actions[-1])[0])
no, last = np.zeros(10, bool), np.arange(10) == 9
episode = Episode(np.array(observations), np.array(actions), np.zeros(10), no, last)
Demonstrations([episode] * 2).save("demos.npz")
buffer = dict(replay_buffer_class=DemonstrationReplayBuffer, replay_buffer_kwargs=dict(demonstrations="demos.npz"))
model = SWFP("FlowPolicy", env, policy_kwargs=dict(n_critics=5), buffer_size=100, **buffer)
model.pretrain(gradient_steps=3)
model.save("clone.zip")
"""
    install.run("-c", script)
    of_the_door = ("--algo", "swfp", "--env", "AdroitHandDoorSparse-v1", "--gym-packages", "gymnasium_robotics")
    output = install.run("-m", "rl_zoo3.train", *of_the_door, "-i", "clone.zip", "-n", "250", "--eval-freq", "-1")
    assert "Loading pretrained agent" in output and "Saving to" in output


def test_all_algorithms_of_the_package(install: Install) -> None:
    # One Python for all of them: starting it takes longer than the rest
    script = f"""
import sys
from rl_zoo3.train import train
for name in {list(ALGORITHMS)}:
    small = ["-params", "n_steps:20", "batch_size:10"] if name == "dppo" else []
    command = ["--algo", name, "--env", "Pendulum-v1", "-n", "80", "--eval-freq", "-1", "-f", "all"]
    sys.argv = ["train", *command, *small]
    train()
"""
    install.run("-c", script)
    assert all((install.work / f"all/{name}/Pendulum-v1_1/Pendulum-v1.zip").exists() for name in ALGORITHMS)


def test_the_hub_s_commands(install: Install) -> None:
    install.run(*TRAIN, "-n", "80", "--eval-freq", "-1", "-f", "mine")
    of_the_run = ("--algo", "swfp", "--env", "Pendulum-v1", "-orga", "someone")
    with hub.serve() as server:
        variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(install.work / "cache"), "HF_TOKEN": "hf_of_nobody"}
        output = install.run("-m", "rl_zoo3.push_to_hub", *of_the_run, "-f", "mine", "-n", "20", **variables)
        assert "Your model is pushed to the hub" in output
        pushed = server.repositories["someone/swfp-Pendulum-v1"]
        card = pushed["README.md"].decode()
        assert "# **SWFP** Agent playing **Pendulum-v1**" in card and "rl_zoo3.train --algo swfp" in card
        # Not a file that every repository has: there were no statistics of observations to push
        assert "vec_normalize.pkl" not in pushed
        install.run("-m", "rl_zoo3.load_from_hub", *of_the_run, "-f", "theirs", TRUST_REMOTE_CODE="True", **variables)
        folder = install.work / "theirs/swfp/Pendulum-v1_1"
        assert (folder / "Pendulum-v1.zip").read_bytes() == pushed["swfp-Pendulum-v1.zip"]
        assert (folder / "Pendulum-v1/config.yml").read_bytes() == pushed["config.yml"]
    loaded = ("-m", "rl_zoo3.enjoy", *of_the_run[:4], "-f", "theirs", "-n", "200", "--no-render")
    assert "Mean reward" in install.run(*loaded)


def test_the_command_without_a_hook(install: Install) -> None:
    arguments = ("-m", "sb3_swfp.zoo", "train", *TRAIN[2:], "-n", "110", "--eval-freq", "-1")
    assert "Saving to" in install.run(*arguments, SB3_SWFP_ZOO_HOOK="0")
