"""One trade-off out of a front, and whether a difference is real."""
