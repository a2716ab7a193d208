"""Whole jobs, each one call of the command line: what is configured is opened, done, and kept."""
