"""What travels with a vote: everything that the members have to agree on at a step's end, as one small JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping

from atoll.schema.trainer_messages import SKIPPED
from atoll.workers import reports
from atoll.workers.reports import Sums


def ballot(
    sums: Sums,
    *,
    skipped: bool,
    stop: bool,
    learnt: bool,
    compare: bool,
    given: Mapping[str, float],
    every: int | None,
    suspend: bool = False,
) -> bytes:
    """A vote is the statement that this member is prepared; what has to be agreed travels with it.

    `learnt`: a learner has caught up. `compare`: a digest of the state after this step would cost little enough. `given`: what
    this member gave to the sums, where backup workers are chosen by it. `every`: how often to save, from who chooses it.
    `suspend`: to save and leave after this step.
    """
    if skipped:
        reports.add(sums, SKIPPED, 1.0, 1.0)
    told = {"learnt": learnt, "compare": compare, "suspend": suspend}
    more = {name: True for name, said in told.items() if said} | ({"given": given} if given else {})
    chosen = {} if every is None else {"every": every}
    return json.dumps({"stop": stop, "sums": sums} | more | chosen).encode()
