"""One thread for what is too small, or must be too exact, for several."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside it torch splits no operation over threads, so that results do not depend on their number.

    Small networks gain little from more threads, and lose much on a busy machine.
    """
    import torch  # late: who records with random actions need not wait for it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
