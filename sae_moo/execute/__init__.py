"""Where evaluations are computed."""
