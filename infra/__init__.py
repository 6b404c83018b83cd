"""Real servers on a developer's machine, without a container engine.

`python -m infra up vault postgres --data DIR` gets what is named, starts it on loopback and prints how to
reach it. Binaries are built or found once, kept in a cache outside the repository and checked at every
start. The tests use the same functions.
"""
