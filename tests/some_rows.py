"""Small transitions for the tests of formats, and what it means that two sets of them are the same."""

import numpy as np
from hypothesis import strategies as st

from dreamloom.datasets.types import Transitions


def rows(n, seed=0, o=3, a=2):
    """Transitions that have nothing to do with one another, as a generative model makes them."""
    random = np.random.default_rng(seed)
    return Transitions(
        observations=random.normal(size=(n, o)).astype(np.float32),
        actions=random.normal(size=(n, a)).astype(np.float32),
        rewards=random.normal(size=n).astype(np.float32),
        next_observations=random.normal(size=(n, o)).astype(np.float32),
        terminals=random.random(n) < 0.3,
        timeouts=np.zeros(n, bool),
    )


def same(found, expected, *but):
    for name, column in vars(expected).items():
        if name in but:
            continue
        other = getattr(found, name)
        np.testing.assert_array_equal(other, column, err_msg=name)
        if column is not None:
            assert other.dtype == column.dtype, name


@st.composite
def recordings(draw):
    """Transitions with runs of any length: some rows follow from the row before, others do not; flags and gaps anywhere."""
    n = draw(st.integers(0, 30))
    data = rows(n, draw(st.integers(0, 9)))
    linked = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    data.next_observations[:-1][linked[:-1]] = data.observations[1:][linked[:-1]]
    flags = st.lists(st.sampled_from([False] * 5 + [True]), min_size=n, max_size=n)
    known = ~np.array(draw(flags), bool)
    data.next_observations[~known] = data.observations[~known]
    changes = {"terminals": np.array(draw(flags), bool), "timeouts": np.array(draw(flags), bool)}
    return Transitions(**{**vars(data), **changes, "next_known": None if known.all() else known})
