"""Collectives: plans, transports and communicators that end with their epoch. Imports with torch alone."""
