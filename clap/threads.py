"""Groups of threads that each do one thing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def threads(*sizes: int) -> Iterator[list[ThreadPoolExecutor]]:
    """Groups of threads in which torch starts no more of its own; on leaving, work that waits is dropped."""
    torch.get_num_threads()  # settles how many the caller uses, before others set theirs
    groups = [ThreadPoolExecutor(size, initializer=torch.set_num_threads, initargs=(1,)) for size in sizes]
    try:
        yield groups
    finally:
        for group in groups:
            group.shutdown(wait=False, cancel_futures=True)
        for group in groups:
            group.shutdown()
