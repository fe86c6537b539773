"""Whatever is done to a file, it is read or refused in one line that names it: no traceback, no wait, no memory."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import good, spoil, with_minari

from dreamloom.datasets import atomic
from dreamloom.datasets.columns import COLUMNS
from dreamloom.datasets.store import DatasetError, open_dataset

NAMES = ["d4rl.hdf5", "dgrl", "flat.hdf5", "ours.hdf5", "ours.npz", "shards", "vd4rl", "video.hdf5"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "fsync", lambda path: None)
        assert good(folder) == NAMES
        if find_spec("minari"):
            with_minari(folder, patch)
    return folder


def read(path):
    """All that a dataset hands on; its columns are equally long, of their promised types, and flags are flags."""
    with open_dataset(path) as data:
        columns = {name: getattr(data, name) for name in COLUMNS if getattr(data, name) is not None}
        columns |= {f"infos/{name}": array for name, array in data.infos.items()}
        for array in columns.values():
            assert len(array) == len(data)
            found = array[:]
            assert found.shape == array.shape
            assert found.dtype == array.dtype
        assert data.episodes[1][-1:].tolist() in ([len(data)], [])
        return len(data)


def refusal(path):
    """What is said of a dataset that cannot be read; None where it can."""
    try:
        read(path)
    except DatasetError as error:
        return str(error)
    return None


def test_the_corpus_is_good(corpus):
    lengths = {path.name: read(path) for path in corpus.iterdir()}
    assert lengths.pop("minari", 4) == 4
    expected = dict.fromkeys(("d4rl.hdf5", "ours.hdf5", "ours.npz", "shards", "video.hdf5", "flat.hdf5"), 12)
    assert lengths == {**expected, "dgrl": 2 * 12, "vd4rl": 2 * 12}


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([*NAMES, "minari"]), st.integers(0, 2**32 - 1))
def test_what_is_malformed_is_refused_in_one_line_that_names_it(corpus, tmp_path_factory, name, seed):
    if not (corpus / name).exists():
        return
    path = tmp_path_factory.mktemp("bad") / name
    (shutil.copytree if (corpus / name).is_dir() else shutil.copy)(corpus / name, path)
    spoil(path, np.random.default_rng(seed))
    told = refusal(path)
    assert told is None or (str(path) in told and told.isprintable() and len(told) < 1000)
    shutil.rmtree(path.parent)
