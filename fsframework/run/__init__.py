"""Runs: from a config to a run directory, reports and tracking."""
