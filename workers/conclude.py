"""What a run ended as, and why, from what its target and its tracking say. Pure."""

from __future__ import annotations

import signal as signals

from launch.models import Cause, CauseKind, RetryRule, RunRecord, RunState, Tracking
from launch.plugins import Phase, Status

_CRASHES = frozenset({CauseKind.HOST_LOST})


def conclude(
    record: RunRecord, status: Status, *, timed_out_s: float | None, tail: tuple[str, ...]
) -> tuple[RunState, Cause]:
    """Return a run's final state and its cause.

    Args:
        record: the run, read after the attempt ended.
        status: the attempt's final status at its target.
        timed_out_s: the time limit it ran into, if it did.
        tail: the last lines of its log.
    """
    state, cause = _classify(record, status, timed_out_s)
    return state, cause.model_copy(update={"log_tail": tail, "exit_code": status.exit_code, "signal": status.signal})


def retry_rule(record: RunRecord, state: RunState, cause: Cause) -> RetryRule | None:
    """Return the rule by which a failed attempt is followed by another; none when the run ends with it."""
    if state not in (RunState.FAILED, RunState.CRASHED):
        return None
    rule = record.spec.retry.rule_for(cause.kind)
    same = sum(record.spec.retry.rule_for(attempt.cause.kind) is rule for attempt in record.attempts)
    return rule if same < rule.times else None


def _classify(record: RunRecord, status: Status, timed_out_s: float | None) -> tuple[RunState, Cause]:
    if record.stop is not None:
        return RunState.STOPPED, Cause(kind=CauseKind.STOPPED, message=f"Stopped by {record.stop.by}.")
    if timed_out_s is not None:
        return RunState.FAILED, Cause(
            kind=CauseKind.TIMEOUT, message=f"Stopped after its time limit of {timed_out_s:g} s."
        )
    if status.phase is Phase.GONE:
        return RunState.CRASHED, Cause(
            kind=CauseKind.HOST_LOST,
            message=f"It disappeared from its target without an exit code. {status.message}".strip(),
        )
    if status.cause is not None:
        state = RunState.CRASHED if status.cause in _CRASHES else RunState.FAILED
        return state, Cause(kind=status.cause, message=status.message or f"The target says: {status.cause}.")
    if status.signal is not None:
        return RunState.FAILED, Cause(
            kind=CauseKind.SIGNAL, message=f"Killed by signal {status.signal} ({_signal_name(status.signal)})."
        )
    if status.exit_code != 0:
        code = "an unknown code" if status.exit_code is None else f"code {status.exit_code}"
        return RunState.FAILED, Cause(kind=CauseKind.EXIT_CODE, message=f"The job exited with {code}.")
    if record.spec.job.tracking is Tracking.REQUIRED and not record.tracked:
        return RunState.FAILED, Cause(
            kind=CauseKind.UNTRACKED,
            message="The job exited with code 0 but never called wandb.init, so nothing of it was recorded. "
            "Call wandb.init in the script, or launch it with --tracking optional if it is not to be tracked.",
        )
    return RunState.FINISHED, Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 0.")


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return "unknown"
