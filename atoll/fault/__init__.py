"""Faults: what counts as evidence (`detector`), what is done about it (`policy`), and making them (`inject`)."""
