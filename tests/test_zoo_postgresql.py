"""Two workers, one study, on a real PostgreSQL server: the storage for tuning on many machines (docs/rl_zoo.md)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

optuna = pytest.importorskip("optuna", reason='needs RL Zoo: pip install "sb3-swfp[zoo]"')
pytest.importorskip("psycopg", reason="needs PostgreSQL's driver: pip install psycopg[binary]")


def programs() -> Path:
    """:return: folder of PostgreSQL's own programs, which Debian keeps out of the path; the test is skipped without"""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    return folders[-1]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the test's own, on a free port. Yields its address."""
    binaries, folder = programs(), tmp_path_factory.mktemp("postgresql")
    user = None
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = "postgres"
        for parent in (folder, *folder.parents):
            if parent != Path("/tmp") and parent.is_relative_to("/tmp"):
                parent.chmod(0o755)
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [str(binaries / program), *arguments]
        log = subprocess.DEVNULL if program == "pg_ctl" else subprocess.PIPE  # the server would keep the pipe open
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=log, stderr=log, timeout=60)

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "swfp", "--auth=trust", "--no-sync")
    run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", f"-p {port} -k {folder} -h 127.0.0.1", "start")
    try:
        yield f"postgresql+psycopg://swfp@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")


def test_two_workers_share_a_study(server: str, tmp_path: Path) -> None:
    optuna.create_study(study_name="swfp", storage=server, direction="maximize")
    arguments = ["--algo", "swfp", "--env", "Pendulum-v1", "-optimize", "-n", "120", "--n-evaluations", "1"]
    arguments += ["--max-total-trials", "2", "--storage", server, "--study-name", "swfp", "--eval-episodes", "1"]
    command = [sys.executable, "-m", "sb3_swfp.zoo", "train", *arguments, "--no-optim-plots"]
    environment = tiny.subprocess_environment()
    workers = [
        subprocess.Popen([*command, "--seed", str(seed)], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        for seed in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    trials = optuna.load_study(study_name="swfp", storage=server).trials
    assert len(trials) in (2, 3) and all(trial.state.is_finished() for trial in trials)
