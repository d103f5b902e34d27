"""How many runs an agent may carry: the limit that its Celery worker asks before it takes a message.

Celery's own limits do not fit: a prefetch count gives a slot back when the message is acknowledged, which here is
before the work, and a pool's size cannot change live. So this table is the limit: ``workers.app`` puts it before each
``BRPOP``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class SlotTable:
    """Slots in use: by runs, and by doorbells that are being answered.

    Adopted runs take a slot even when none is free, so that somebody follows them: ``free`` is then negative and
    nothing new is taken.
    """

    def __init__(self, max_jobs: int, on_free: Callable[[], None] = lambda: None) -> None:
        self.on_free = on_free
        self._max_jobs = max_jobs
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def max_jobs(self) -> int:
        """How many runs at once."""
        return self._max_jobs

    @max_jobs.setter
    def max_jobs(self, value: int) -> None:
        self._max_jobs = value
        self.on_free()

    @property
    def free(self) -> int:
        """How many more may be taken."""
        return self._max_jobs - self._taken

    def take(self) -> None:
        """Take a slot."""
        with self._lock:
            self._taken += 1

    def give_back(self) -> None:
        """Give a slot back, and wake whoever waits for one."""
        with self._lock:
            self._taken -= 1
        self.on_free()
