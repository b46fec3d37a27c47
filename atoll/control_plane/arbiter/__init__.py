"""The arbiter: who gets which nodes, who waits, who yields, and why. A pure core: facts and `now` in, decisions out.

Read in this order: `model` (what a decision rests upon), `events` and `decisions` (the two sides), `reasons` (why),
`core` (the fold and the tick); then what a tick does: `ordering`, `choosing` with `packing` and `speed`, `refusing`,
`preempting` with `roster`, `keeping`, `growing`. `cluster`, `catalog`, `accounts` and `holding` are the index beneath.
"""
