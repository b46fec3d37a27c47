"""Measurements of Atoll beside its peers, in one run and on one machine. `python -m benchmarks.collectives --help`."""

import os

# Hosts of the lab have no name service, of which torch warns at every connection; it reads this once, when imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # noqa: TID251 - torch has no other way
