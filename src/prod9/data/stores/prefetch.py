"""Reading ahead: threads load the next items while the caller works on the current one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(loads: Iterable[Callable[[], T]], num_workers: int) -> Iterator[T]:
    """Yield the results of ``loads`` in order, while ``num_workers`` threads load the next; 0 loads on request.

    At most ``num_workers`` results wait, so memory stays bounded. An error is raised where its result would come.
    """
    if num_workers < 1:
        for load in loads:
            yield load()
        return
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for load in loads:
                waiting.append(pool.submit(load))
                if len(waiting) > num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
