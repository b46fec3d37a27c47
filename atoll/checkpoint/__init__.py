"""Checkpoints: immutable packs, checksums, one atomic commit record. Imports with torch alone."""
