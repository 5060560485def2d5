"""Package metadata. The settings of the development tools are in ``pyproject.toml``."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

EXTRAS: dict[str, list[str]] = {
    # pandas and requests are imported by the Zoo (and by SB3's Monitor reader) but not declared by it.
    "zoo": ["rl-zoo3>=2.9", "matplotlib", "pandas", "requests"],
    "robotics": ["gymnasium-robotics>=1.3", "matplotlib", "imageio[ffmpeg]"],
    # Minari's data sets are hosted on Hugging Face: without "hf" its own download command does not work.
    "minari": ["minari[hdf5,hf]>=0.5"],
    "hdf5": ["h5py>=3.8"],
}
EXTRAS["all"] = sorted({requirement for group in EXTRAS.values() for requirement in group})
EXTRAS["dev"] = [
    *EXTRAS["robotics"],
    *EXTRAS["minari"],
    *EXTRAS["hdf5"],
    "hypothesis",
    "mypy>=1.11",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
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
