"""``launch doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from launch.cli.options import as_json_option, client

if TYPE_CHECKING:
    from launch.findings import Check


@click.command()
@as_json_option
def doctor(as_json: bool) -> None:
    """Say what is wrong here, and how to mend it.

    Looks over broker, server, queues, agents, targets, artifact store, disk and versions, and changes nothing but a few
    bytes in the store. The exit code is 0 if nothing is wrong, and 1 if something is.
    """
    from launch.cli.output import print_json
    from launch.doctor import examine

    made = client()
    checks: list[Check] = []
    for check in examine(made.store, made.settings):
        checks.append(check)
        if not as_json:
            _print(check)
    findings = [finding for check in checks for finding in check.findings]
    if as_json:
        print_json({"checks": [asdict(check) for check in checks], "is_well": not findings})
    else:
        click.echo(f"{len(findings)} finding(s)" if findings else "nothing is wrong")
    if findings:
        click.get_current_context().exit(1)


def _print(check: Check) -> None:
    mark = click.style("wrong", fg="red", bold=True) if check.findings else click.style("ok", fg="green") + "   "
    click.echo(f"{mark}  {check.subject.ljust(8)}  {check.said}")
    for finding in check.findings:
        click.echo(f"       {click.style(finding.what, bold=True)}")
        click.echo(f"       {finding.why}")
        click.echo(f"       {click.style('to mend it:', dim=True)} {finding.fix}")
