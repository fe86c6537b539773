"""Shared by all tests: shapes of public signatures are checked, threads are few, and the tiny datasets are real Procgen."""

import os
from importlib.util import find_spec
from pathlib import Path

# The tensors are small: a second thread doubles the time of the processor, and on a busy machine the test's own. Set before any
# library reads it, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports dreamloom: every annotated shape and type is then checked on every call.
if find_spec("beartype") is not None:  # a machine with a GPU may not have it
    install_import_hook("dreamloom", "beartype.beartype")
torch.set_num_threads(1)
# A busy machine is no failure of what is tested, and a run of the tests fails where the one before did.
settings.register_profile("dreamloom", deadline=None, derandomize=True)
settings.load_profile("dreamloom")


def record(path: Path, **settings: object) -> Path:
    """Records a small real Procgen file, or skips where Procgen has no wheel."""
    if find_spec("procgen") is None:
        pytest.skip("Procgen is not installed")
    from dreamloom.datasets.procgen import collect_procgen

    collect_procgen(**{"game": "coinrun", "steps": 400, "num_envs": 4, "segment": 100, "out": path, **settings})
    return path


@pytest.fixture(scope="session")
def coinrun_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 frames of real CoinRun: four environments, levels 0 to 9."""
    return record(tmp_path_factory.mktemp("data") / "coinrun.hdf5", levels="0:10")


@pytest.fixture(scope="session")
def heldout_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 frames of levels that `coinrun_file` does not have."""
    return record(tmp_path_factory.mktemp("data") / "heldout.hdf5", levels="1000:1010")


def record_mujoco(path: Path, env: str, **settings: object) -> Path:
    """Records 2,000 rows of random actions in the real simulator, or skips where MuJoCo is not installed."""
    if find_spec("mujoco") is None:
        pytest.skip("MuJoCo is not installed")
    from dreamloom.datasets.mujoco import collect_mujoco

    collect_mujoco(**{"env": env, "steps": 2000, "policy": "random", "out": path, **settings})
    return path


@pytest.fixture(scope="session")
def cheetah_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows of HalfCheetah-v5, random actions: two episodes of 1,000 steps, which time out."""
    return record_mujoco(tmp_path_factory.mktemp("data") / "cheetah.hdf5", "HalfCheetah-v5")


@pytest.fixture(scope="session")
def hopper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows of Hopper-v5, random actions: about 90 short episodes, all but the last end in a terminal row."""
    return record_mujoco(tmp_path_factory.mktemp("data") / "hopper.hdf5", "Hopper-v5")


def pytest_runtest_setup() -> None:
    """No test depends on the randomness that the ones before it used up."""
    torch.manual_seed(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Files stay whole, so that what a module trains once is trained once; pages and examples share nothing, and are split."""
    from xdist.scheduler import LoadFileScheduling

    class Balanced(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return nodeid if file.endswith(("test_docs.py", "test_readme.py")) else file

    return Balanced(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where there is one; the slow ones start first, so that no process waits for one at the end."""
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
