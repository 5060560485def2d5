"""Package metadata. The settings of the development tools are in ``pyproject.toml``."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
#: Go beside the package, not into it: Python reads .pth files in site-packages alone (see sb3_swfp/zoo/startup)
STARTUP_FILES = ("sb3_swfp_zoo.pth", "sb3_swfp_zoo_hook.py")


class BuildWithStartupHook(build_py):
    """Adds RL Zoo's start-up hook and the hyperparameters to what is installed."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # nothing is copied then: hyperparams/ is found in the checkout, the hook is added below
            return
        for name in STARTUP_FILES:
            self.copy_file(str(ROOT / "sb3_swfp" / "zoo" / "startup" / name), str(Path(self.build_lib) / name))
        folder = Path(self.build_lib) / "sb3_swfp" / "hyperparams"
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted((ROOT / "hyperparams").glob("*.yml")):
            self.copy_file(str(path), str(folder / path.name))


class EditableWithStartupHook(editable_wheel):
    """Adds RL Zoo's start-up hook to the wheel of an editable install, which holds nothing else but a link."""

    def run(self) -> None:
        super().run()
        for wheel in Path(self.dist_dir).glob("sb3_swfp-*editable*.whl"):
            add_to_wheel(wheel, {name: ROOT / "sb3_swfp" / "zoo" / "startup" / name for name in STARTUP_FILES})


def add_to_wheel(wheel: Path, files: dict[str, Path]) -> None:
    """
    Add files to the root of a finished wheel, and to its record, by which pip will remove them again.

    :param wheel: the wheel, replaced
    :param files: names in the wheel, and where their contents are
    """
    with zipfile.ZipFile(wheel) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    (record,) = (name for name in contents if name.endswith(".dist-info/RECORD"))
    for name, path in files.items():
        contents[name] = path.read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode()
        contents[record] = f"{name},sha256={digest},{len(contents[name])}\n".encode() + contents[record]
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


EXTRAS: dict[str, list[str]] = {
    # pandas, requests, moviepy and pygame are needed by the Zoo's commands (tuning, load_from_hub, record_video, enjoy)
    # but not declared by it. pygame-ce is the pygame of Gymnasium's own extras: the two must not be installed together.
    "zoo": ["rl-zoo3[plots]>=2.9,<3", "matplotlib", "pandas", "requests", "moviepy", "pygame-ce"],
    # LunarLander and BipedalWalker. Wheels exist up to Python 3.13; from there on it is built, with SWIG.
    "box2d": ["gymnasium[box2d]>=1.0"],
    "robotics": ["gymnasium-robotics>=1.3", "matplotlib", "imageio[ffmpeg]"],
    # Minari's data sets are hosted on Hugging Face: without "hf" its own download command does not work.
    "minari": ["minari[hdf5,hf]>=0.5"],
    "hdf5": ["h5py>=3.8"],
}
EXTRAS["all"] = sorted({requirement for group in EXTRAS.values() for requirement in group})
EXTRAS["dev"] = [
    *EXTRAS["robotics"],
    *EXTRAS["zoo"],
    *EXTRAS["box2d"],
    *EXTRAS["minari"],
    *EXTRAS["hdf5"],
    "hypothesis",
    "psycopg[binary]",  # RL Zoo's studies on PostgreSQL
    "wandb",  # its --track
    "mypy>=1.11",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
    "setuptools>=70.1",  # builds the package in tests/test_zoo_install.py, without the network
]

setup(
    name="sb3-swfp",
    version=(ROOT / "sb3_swfp" / "version.txt").read_text(encoding="utf-8").strip(),
    description="Stepwise flow policies (SWFP) for offline-to-online reinforcement learning on Stable-Baselines3",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="sb3_swfp contributors",
    license="MIT",
    packages=find_packages(include=["sb3_swfp", "sb3_swfp.*"]),
    package_data={"sb3_swfp": ["py.typed", "version.txt"]},
    cmdclass={"build_py": BuildWithStartupHook, "editable_wheel": EditableWithStartupHook},
    python_requires=">=3.10",
    install_requires=[
        "stable-baselines3>=2.7,<3",
        "sb3-contrib>=2.7,<3",
        "torch>=2.3",
        "gymnasium>=1.0",
        # 3.10 is the newest release the tests ran with; 3.17 and 4.0 are known to break the Fetch and Kitchen tasks.
        "mujoco>=3.1,<3.11",
        "numpy",
        "pot>=0.9",
        "tensorboard>=2.9",
        # What Stable-Baselines3 draws its progress bar with.
        "tqdm",
        "rich",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
