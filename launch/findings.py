"""What a check has found: something wrong, why that matters, and what to type to mend it. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    what: str
    why: str
    fix: str
    """A command, or what to do where no command can."""
    voids_promise: bool = False
    """Whether runs may be lost or doubled because of it."""

    def __str__(self) -> str:
        return f"{self.what} {self.why} To mend it: {self.fix}"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    subject: str
    """One word."""
    said: str
    """What it is like, in one line."""
    findings: tuple[Finding, ...] = ()
