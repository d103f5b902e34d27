"""The life of a claimed run, top to bottom: fetch, build, plan, submit, follow, conclude, remove.

Each step may be the agent's last, so each leaves behind what the next agent needs to go on: before the handle is
recorded, everything is done again (a build is found made, a submit finds its own attempt); after it, the attempt is
followed from the recorded cursor. ``guard`` stands before every effect outside Redis: a run that has passed to another
agent is let go of, and nothing of it is touched.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from launch.artifacts import ArtifactStore
from launch.checking import parse
from launch.errors import (
    BrokerAwayError,
    BuildError,
    ConfigError,
    LaunchError,
    LostClaimError,
    PullError,
    TemporaryError,
)
from launch.git.code import GitCode
from launch.models import Cause, CauseKind, CommandSource, Job, LaunchSpec, RunState, Tracking
from launch.plugins import Attempt, Build, Phase, Plan, Runner, Status, attempt_name
from launch.resolve import macro_values, render_macros
from launch.secrets import references
from launch.tracking import launch_env, tracking_env
from workers.builds import build_request, job_labels
from workers.caches import HeldCode
from workers.claim import Claim, DetachedError
from workers.conclude import conclude, retry_rule
from workers.first_run import FirstRuns
from workers.logs import LogPump, LogWriter
from workers.secret_sources import Secrets
from workers.server_access import ServerAccess
from workers.sources import fetch
from workers.targets import Target, Targets

log = logging.getLogger(__name__)

_LOOK_UP_S = 5.0
"""How often a thread that waits for an attempt's end looks at time limits."""
_AWAY_S = 1.0
_TIMEOUT_GRACE_S = 10.0
_LOG_END_S = 60.0
"""How long the log of an ended attempt may take to arrive in full."""


@dataclass(frozen=True)
class Tools:
    """What an agent lends to the runs it carries."""

    installation: str
    home: Path
    artifacts: ArtifactStore
    server: ServerAccess
    targets: Targets
    secrets: Secrets
    recheck: Callable[[LaunchSpec], None]
    """Raises a ConfigError when the queue does not allow what the launch overrides."""
    log_cap_chars: int
    max_run_seconds: float | None
    first_runs: FirstRuns | None = None
    """Keeps what the first finished run of a job's version tells of it."""
    git: GitCode | None = None
    """Fetches the commits of git jobs; none: as an agent does that is configured for none."""
    held_code: HeldCode = field(default_factory=HeldCode)
    """What of the code on this machine must stay, since a run needs it."""
    at_step: Callable[[str, str], None] = lambda *_: None
    """Called before each step with its name and the run's id; a test's place to die."""


def execute(claim: Claim, tools: Tools) -> None:
    """Carry a claimed run to its end, from wherever it is.

    Raises:
        TemporaryError: its target is away; nothing was sent, and the run is back at its old place in the queue.
    """
    try:
        target = tools.targets[claim.spec.resource]
    except ConfigError as exc:
        return claim.finish(RunState.FAILED, Cause(kind=CauseKind.CONFIG, message=str(exc)))
    try:
        handle = claim.record.handle or _find_submitted(claim, tools, target.runner)
        writer = LogWriter(claim, tools.home, cap_chars=tools.log_cap_chars)
        handle = handle or _start(claim, tools, target, writer)
        if handle is None:
            return None
        status, timed_out_s = _follow(claim, tools, target.runner, handle, writer)
        _conclude(claim, tools, target.runner, handle, status, timed_out_s, writer)
    except LostClaimError:
        log.warning("run %s: now another agent's, let go", claim.id)
    except DetachedError:
        log.info("run %s: let go, its job goes on", claim.id)
    return None


def give_up(claim: Claim) -> None:
    """End a run whose machine has not been heard of for too long, or let it be tried again where its policy says so."""
    hours = claim.spec.limits.orphan_s / 3600
    message = f"No agent that could follow it has been seen for {hours:.3g} h: it counts as lost with its machine."
    cause = Cause(kind=CauseKind.HOST_LOST, message=message)
    try:
        _end_or_retry(claim, RunState.CRASHED, cause, archive=None)
    except (LostClaimError, DetachedError):
        log.info("run %s: let go", claim.id)


# --- until it has a handle --------------------------------------------------------------------------------------------


def _find_submitted(claim: Claim, tools: Tools, runner: Runner) -> str | None:
    """Return the handle of an attempt that an agent before this one has started without recording it.

    If it may have been sent and the target knows nothing of it, it never arrived, or it ran and was removed behind our
    back. Nobody can tell, so the run goes on with its next attempt: no attempt is ever started twice.
    """
    if not claim.record.submitting:
        return None
    name = attempt_name(tools.installation, claim.id, claim.record.attempt)
    handle = claim.insist(runner.find, pause_s=_AWAY_S).get(name)
    if handle is None:
        message = "The agent died while submitting it, and its target knows nothing of it."
        claim.next_attempt(Cause(kind=CauseKind.HOST_LOST, message=message))
        return None
    if claim.insist(lambda: runner.status([handle])[handle], pause_s=_AWAY_S).phase is Phase.STARTING:
        return None  # left half made, never started: a submit begins it anew
    claim.advance(RunState.RUNNING, note="found at its target", handle=handle)
    return handle


def _start(claim: Claim, tools: Tools, target: Target, writer: LogWriter) -> str | None:
    """Build and submit; none when the run has ended or gone back to its queue instead."""
    try:
        while True:
            try:
                return _build_and_submit(claim, tools, target, writer)
            except BrokerAwayError as exc:
                # No fault of the target's, and all of it may be done again.
                log.warning("run %s: %s; starting it again", claim.id, exc)
                claim.pause(_AWAY_S)
    except InterruptedError:
        _interrupted(claim, tools, target.runner, writer)
    except BuildError as exc:
        _fail(claim, tools, CauseKind.BUILD, str(exc), writer)
    except PullError as exc:
        _fail(claim, tools, CauseKind.PULL, str(exc), writer)
    except TemporaryError as exc:
        # Nothing was sent: see below.
        claim.unclaim(note=str(exc))
        writer.discard()
        raise
    except LaunchError as exc:
        _fail(claim, tools, CauseKind.CONFIG, str(exc), writer)
    except (LostClaimError, DetachedError):
        raise
    except Exception as exc:
        log.exception("run %s: could not be started", claim.id)
        message = f"The agent failed while starting it: {type(exc).__name__}: {exc}"
        _fail(claim, tools, CauseKind.INTERNAL, message, writer)
    return None


def _build_and_submit(claim: Claim, tools: Tools, target: Target, writer: LogWriter) -> str:
    spec, runner = claim.spec, target.runner
    tools.recheck(spec)
    _know_secrets(claim, tools)

    tools.at_step("fetch", claim.id)
    code = _fetch_code(claim, tools, writer)

    tools.at_step("build", claim.id)
    image, digest, because = None, None, "nothing to build"
    if not _is_bare(spec.job) or not runner.runs_bare_commands:
        build = _build(claim, tools, target, writer, code)
        image, because = build.image, build.because
        digest = build.digest
        code = None if build.holds_code else code
    claim.advance(RunState.STARTING, note=because, image=image, image_digest=digest)

    options, secrets = _options(claim, tools, runner, image)
    attempt = _attempt(claim, tools, runner, options, code, secrets)
    plan = runner.plan(attempt, image, options)

    tools.at_step("submit", claim.id)
    for problem in runner.check():
        raise TemporaryError(problem.what)
    handle = _submit(claim, runner, plan)

    tools.at_step("record", claim.id)
    claim.advance(RunState.RUNNING, note="started", handle=handle)
    return handle


def _submit(claim: Claim, runner: Runner, plan: Plan) -> str:
    """Submit until the target has answered: once it was sent it may run, and it must not be started twice."""
    while True:
        if claim.is_stop_requested:
            raise InterruptedError
        claim.guard(submitting="1")
        try:
            return runner.submit(plan)
        except TemporaryError as exc:
            log.warning("run %s: its target went away while it was submitted: %s", claim.id, exc)
            claim.advance(note=f"submitting it again: {exc}")
            claim.pause(_AWAY_S)


def _fetch_code(claim: Claim, tools: Tools, writer: LogWriter) -> Path | None:
    fetch_it = partial(
        fetch,
        claim.spec.job.source,
        home=tools.home,
        artifacts=tools.artifacts,
        git=tools.git,
        cancelled=_cancelled(claim),
        note=lambda sentence: writer.write("build", f"{sentence}\n"),
    )
    code = tools.held_code.hold(claim.id, fetch_it)
    writer.flush()
    return code


def _cancelled(claim: Claim) -> Callable[[], bool]:
    """Return whether to give up what is done before the run starts: it is to stop, or has taken too long."""
    limit_s = claim.spec.limits.start_s
    until = math.inf if limit_s is None else time.monotonic() + limit_s - claim.seconds_since(claim.record.claimed_at)
    return lambda: claim.is_stop_requested or claim.is_detached or time.monotonic() > until


def _is_bare(job: Job) -> bool:
    return isinstance(job.source, CommandSource) and job.requirements is None and job.python_version is None


def _build(claim: Claim, tools: Tools, target: Target, writer: LogWriter, code: Path | None) -> Build:
    options, _ = _options(claim, tools, target.runner)
    request = build_request(claim.spec, target.runner.build_options(options), code, tools.artifacts)
    with claim.store.meter.building(target.builder.name) as note_reused:
        build = target.builder.build(request, log=lambda text: writer.write("build", text), cancelled=_cancelled(claim))
        note_reused(build.reused)
    writer.flush()
    return build


def _know_secrets(claim: Claim, tools: Tools) -> None:
    """Have what the run refers to masked from now on in all that is passed on of it.

    Raises:
        ConfigError: a secret is not there.
        TemporaryError: a source is away.
    """
    claim.redaction.add([tools.server.key_for(claim.id, claim.record.attempt)])
    for name in sorted(references(claim.spec.resource_config)):
        tools.secrets.get(name)
    claim.redaction.is_complete = True


def _know_secrets_again(claim: Claim, tools: Tools) -> None:
    """Do the same for an attempt that an agent before this one has submitted: nobody has written its secrets down.

    One that is gone meanwhile cannot be masked any more, and what is changed is masked as it is now.
    """
    if claim.redaction.is_complete:
        return
    claim.redaction.add([tools.server.key_for(claim.id, claim.record.attempt)])
    for name in sorted(references(claim.spec.resource_config)):
        try:
            claim.insist(partial(tools.secrets.get, name), pause_s=_AWAY_S)
        except ConfigError as exc:
            log.warning("run %s: its log may show what was this secret: %s", claim.id, exc)
    claim.redaction.is_complete = True


def _options(claim: Claim, tools: Tools, runner: Runner, image: str | None = None) -> tuple[Any, frozenset[str]]:
    """Return the effective resource config, its macros and secrets filled in, and the secrets.

    The image's macro is left while there is none.
    """
    config, macros = claim.spec.resource_config, macro_values(claim.spec, image)
    if claim.record.memory_factor != 1.0:
        config = runner.with_memory(config, claim.record.memory_factor)
    without = render_macros(config, macros)
    options = parse(runner.Options, without, where="resource config")
    filled, used = tools.secrets.render(config, rest=lambda text: str(render_macros(text, macros)))
    if filled == without:
        return options, used
    try:
        return parse(runner.Options, filled, where="resource config"), used
    except ConfigError:
        # Its message may quote a secret, whose reference was right there just now.
        names = ", ".join(sorted(references(config)))
        raise ConfigError(
            f"resource config: a value among these secrets does not fit where it stands: {names}"
        ) from None


def _attempt(
    claim: Claim, tools: Tools, runner: Runner, options: Any, code: Path | None, secrets: frozenset[str]
) -> Attempt:
    spec, number = claim.spec, claim.record.attempt
    env: Mapping[str, str] = {**launch_env(spec, number), "WANDB_MODE": "offline"}
    secret_env = {}
    url = _tracking_url(spec, tools, runner, options)
    if url is not None:
        scratch = runner.scratch_dir(attempt_name(tools.installation, spec.run_id, number))
        is_first = claim.insist(lambda: tools.first_runs is not None and tools.first_runs.is_wanted(spec))
        env = tracking_env(spec, number, base_url=url, wandb_dir=scratch, reports_inputs=is_first)
        secret_env["WANDB_API_KEY"] = tools.server.issue_key(spec.run_id, number)
    return Attempt(
        installation=tools.installation,
        run_id=spec.run_id,
        number=number,
        command=spec.command,
        env=env,
        secret_env=secret_env,
        secrets=secrets,
        code=code,
        labels=job_labels(spec),
    )


def _tracking_url(spec: LaunchSpec, tools: Tools, runner: Runner, options: Any) -> str | None:
    is_required = spec.job.tracking is Tracking.REQUIRED
    try:
        url = tools.server.url_for(runner, options)
    except TemporaryError:
        if is_required:
            raise
        return None
    if url is None and is_required:
        raise ConfigError(
            "resource config: a job of this queue cannot reach the tracking server (its network is cut off); "
            "give it a network, or launch with --tracking optional"
        )
    return url


def _interrupted(claim: Claim, tools: Tools, runner: Runner, writer: LogWriter) -> None:
    """End a run that was stopped or took too long before it had a handle, or let go of one whose agent goes."""
    if claim.is_detached:
        raise DetachedError(claim.id)
    # A submit that was interrupted, this agent's or another's, may have left the attempt behind.
    name = attempt_name(tools.installation, claim.id, claim.record.attempt)
    left_behind = claim.insist(runner.find, pause_s=_AWAY_S).get(name)
    if left_behind is not None:
        _stop(claim, runner, left_behind, 0)
        _wait(claim, runner, left_behind, _LOOK_UP_S)
        _remove(claim, runner, left_behind)
    claim.refresh()
    stop = claim.record.stop
    if stop is None:
        limit_s = claim.spec.limits.start_s
        limit = f"its limit of {limit_s:g} s" if limit_s is not None else "the builder's patience"
        return _fail(claim, tools, CauseKind.TIMEOUT, f"It did not start within {limit}.", writer)
    cause = Cause(kind=CauseKind.STOPPED, message=f"Stopped by {stop.by} before it started.")
    claim.finish(RunState.STOPPED, cause, log_archive=_stored(claim, tools, writer))
    return None


def _fail(claim: Claim, tools: Tools, kind: CauseKind, message: str, writer: LogWriter) -> None:
    cause = Cause(kind=kind, message=message, log_tail=writer.tail())
    claim.finish(RunState.FAILED, cause, log_archive=_stored(claim, tools, writer))


# --- from the handle on -----------------------------------------------------------------------------------------------


def _follow(claim: Claim, tools: Tools, runner: Runner, handle: str, writer: LogWriter) -> tuple[Status, float | None]:
    """Wait for the attempt's end; returns its status, and the time limit it ran into, if it did."""
    tools.at_step("follow", claim.id)
    claim.when_stopped(lambda grace_s: _stop(claim, runner, handle, grace_s))
    pump = LogPump(runner, handle, writer, claim, prepare=lambda: _know_secrets_again(claim, tools))
    pump.start()
    claim.refresh()
    limit_s, timed_out_s = _run_limit_s(claim, tools), claim.record.timed_out_s
    until = math.inf if limit_s is None else time.monotonic() + limit_s - claim.seconds_since(claim.record.started_at)
    while not (status := _wait(claim, runner, handle, min(_LOOK_UP_S, until - time.monotonic()))).is_final:
        if time.monotonic() >= until:
            timed_out_s, until = limit_s, math.inf
            claim.advance(note=f"over its limit of {limit_s:g} s", timed_out_s=str(limit_s))
            _stop(claim, runner, handle, _TIMEOUT_GRACE_S)
    pump.join(_LOG_END_S)
    return status, timed_out_s


def _run_limit_s(claim: Claim, tools: Tools) -> float | None:
    limits = (claim.spec.limits.run_s, tools.max_run_seconds)
    return min((limit for limit in limits if limit is not None), default=None)


def _wait(claim: Claim, runner: Runner, handle: str, timeout_s: float) -> Status:
    """Return the attempt's status once it is final, or after a while; a target that is away is waited for."""
    return claim.insist(lambda: runner.wait(handle, max(0.0, timeout_s)), pause_s=_AWAY_S)


def _stop(claim: Claim, runner: Runner, handle: str, grace_s: float) -> None:
    """Ask the target to end the attempt, until it has heard it."""

    def stop() -> None:
        claim.guard()
        runner.stop(handle, grace_s)

    claim.insist(stop, pause_s=_AWAY_S)


def _conclude(
    claim: Claim,
    tools: Tools,
    runner: Runner,
    handle: str,
    status: Status,
    timed_out_s: float | None,
    writer: LogWriter,
) -> None:
    tools.at_step("conclude", claim.id)
    _know_secrets_again(claim, tools)
    if not writer.is_whole:
        _read_again(claim, runner, handle, writer)
    claim.refresh()
    tail = writer.tail()
    archive = _stored(claim, tools, writer)
    state, cause = conclude(claim.record, status, timed_out_s=timed_out_s, tail=tail)
    if state is RunState.FINISHED and (first_runs := tools.first_runs) is not None:
        # Before the end is on record: from then on nobody comes back to the run.
        claim.insist(lambda: first_runs.keep(claim.record))
    _end_or_retry(claim, state, cause, archive)
    tools.at_step("remove", claim.id)
    _remove(claim, runner, handle)


def _end_or_retry(claim: Claim, state: RunState, cause: Cause, archive: str | None) -> None:
    rule = retry_rule(claim.record, state, cause)
    if rule is None:
        claim.finish(state, cause, log_archive=archive)
    else:
        claim.retry(cause, log_archive=archive, rule=rule)


def _read_again(claim: Claim, runner: Runner, handle: str, writer: LogWriter) -> None:
    """Make the log file whole from what the target has and, of the build, from what Redis has."""

    def read() -> None:
        build = ((entry.stream, entry.text) for entry in claim.build_log())
        job = ((chunk.stream, chunk.text) for chunk in runner.logs(handle, None))
        writer.rewrite(itertools.chain(build, job))

    try:
        claim.insist(read, pause_s=_AWAY_S)
    except OSError as exc:
        log.error("run %s: there is no room for its log: %s", claim.id, exc)


def _stored(claim: Claim, tools: Tools, writer: LogWriter) -> str | None:
    """Put the log into the artifact store; a store that is full or away must not cost the run its result."""
    writer.flush()
    if not writer.is_whole:
        return None
    try:
        digest = tools.artifacts.put_file(writer.path)
    except (OSError, LaunchError) as exc:
        log.error("run %s: the artifact store takes no log, which stays in %s: %s", claim.id, writer.path, exc)
        return None
    writer.discard()
    return digest


def _remove(claim: Claim, runner: Runner, handle: str) -> None:
    """Clear up at the target; what cannot be removed now is found by the agent's sweep."""
    try:
        runner.remove(handle)
    except LaunchError as exc:
        log.warning("run %s: its remains at the target are left for later: %s", claim.id, exc)
