"""The control plane: a pure core that decides, a journal that remembers, and a Ray actor around them.

Read in this order: `records` (what is decided), `events` and `effects` (the core's two sides), `lifecycle` (the table
of run states), `state` (records applied), `core` (events to effects); then the shells `ray_actor`, `grpc_server`,
`sql_journal`, `sql_history`, `ray_seats` and `ray_bootstrap`.
"""
