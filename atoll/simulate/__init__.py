"""The simulator: the scheduler's own cores on virtual time, over synthetic and recorded workloads.

Read in this order: `cluster` and `jobs` (what there is), `progress` (how fast a gang advances where it stands), `laws`
and `recorded` (where jobs come from), `world` (the state), `policy` (who decides: `fifo`, `arbitrated`), `engine` (events
in time), `measures` (what came of it), `pictures`. All of it is pure: time is a number in a heap, chance a seeded
generator; the same seed gives the same result.
"""
