"""The ledger: what jobs really did, written by the jobs themselves to a file outside Redis.

One line when a job starts and one when it ends, each put there by one append of the job's own shell, so that lines of
many jobs never mix and their order in the file is the order in which they were written::

    start <run id> <attempt> <pid> <seconds since the machine started>
    end   <run id> <attempt> <pid> <seconds since the machine started>
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ENV_LEDGER = "CHAOS_LEDGER"

# Nothing but the shell's own words and `sleep`: it runs in an image that holds no more than these. The attempt is in
# the environment that the agent gives every tracked job.
JOB_SCRIPT = """\
run=${WANDB_LAUNCH_TRACE_ID%-*} attempt=${WANDB_LAUNCH_TRACE_ID##*-}
note() { read now rest < /proc/uptime; echo "$1 $run $attempt $$ $now" >> "$CHAOS_LEDGER"; }
note start
i=0
while [ $i -lt $1 ]; do i=$((i+1)); echo "line $i"; sleep $2; done
note end
"""
"""Arguments: how many lines to print, and how many seconds to sleep after each."""

GATE_SCRIPT = """\
run=${WANDB_LAUNCH_TRACE_ID%-*} attempt=${WANDB_LAUNCH_TRACE_ID##*-}
note() { read now rest < /proc/uptime; echo "$1 $run $attempt $$ $now" >> "$CHAOS_LEDGER"; }
note start
while [ ! -e "$1" ]; do sleep 0.1; done
note end
"""
"""A job that ends when the file in its argument is there."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    what: str
    """``start`` or ``end``."""
    run_id: str
    attempt: int
    pid: int
    uptime_s: float
    line: int
    """Its place in the file, from 0."""


def read_entries(lines: Iterable[str]) -> list[Entry]:
    """Return the ledger's entries, in the order they were written.

    Raises:
        ValueError: a line is no entry; nobody but jobs may write here, and each line is one write.
    """
    entries = []
    for number, line in enumerate(lines):
        words = line.split()
        if len(words) != 5 or words[0] not in ("start", "end"):
            raise ValueError(f"ledger, line {number + 1}: is no entry: {line!r}")
        entries.append(Entry(words[0], words[1], int(words[2]), int(words[3]), float(words[4]), number))
    return entries
