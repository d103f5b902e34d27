"""``launch chaos``: real runs under real faults, and a verdict on what openlaunch promises of them.

A *world* of its own (Redis, launch home, agents, and a Docker engine where there can be one) below a temporary folder
gets a load of short runs while a seeded schedule kills, stops, cuts and fills what the runs depend on. Each run's job
writes to a *ledger* outside Redis when it really starts and when it ends; the *verdict* compares that with the record.

The pure parts are :mod:`~launch.chaos.plan` (what happens when), :mod:`~launch.chaos.ledger` and
:mod:`~launch.chaos.verdict`; nothing is imported here, since agents load :mod:`~launch.chaos.fault_points` only.
"""
