"""Reading ahead: the order holds, memory is bounded, errors arrive."""

import threading
import time

import pytest

from prod9.data.stores.prefetch import prefetched


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_the_order_is_kept(num_workers: int) -> None:
    loads = [lambda k=k: (time.sleep(0.002 * (k % 3)), k)[1] for k in range(20)]
    assert list(prefetched(loads, num_workers)) == list(range(20))


def test_few_results_wait() -> None:
    started: list[int] = []
    results = prefetched([lambda k=k: started.append(k) for k in range(50)], 2)
    next(results)
    time.sleep(0.05)
    assert len(started) <= 4
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() < 10


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_comes_in_its_place(num_workers: int) -> None:
    def fail() -> int:
        raise OSError("gone")

    results = prefetched([lambda: 1, fail, lambda: 3], num_workers)
    assert next(results) == 1
    with pytest.raises(OSError, match="gone"):
        next(results)
