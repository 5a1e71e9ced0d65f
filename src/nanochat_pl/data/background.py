"""Work done ahead of its consumer in one background thread, without queues that anything could hang on.

The thread only ever runs tasks that end by themselves, and only as many are handed to it as results may lie
ready. So closing or deleting the iterator, an exception on either side, and the end of the interpreter all
end the thread, and a result can never be lost between the two sides.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["compute_ahead"]

Result = TypeVar("Result")


def compute_ahead(make: Callable[[], Result], ahead: int, name: str) -> Generator[Result, None, None]:
    """Yield `make()`, `make()`, … forever, up to `ahead` results computed early, in order, in one thread.

    An exception in `make` is raised where its result would have come, and ends the iterator.

    Args:
        ahead: results that may lie ready beside the one in use; 0 = call `make` in the consumer's thread.
        name: of the thread.
    """
    if ahead == 0:
        while True:
            yield make()
    thread = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        pending = deque(thread.submit(make) for _ in range(ahead))
        while True:
            result = pending.popleft().result()
            pending.append(thread.submit(make))
            yield result
    finally:
        # not waited for: a generator may be collected in any thread, even in this one
        thread.shutdown(wait=False, cancel_futures=True)
