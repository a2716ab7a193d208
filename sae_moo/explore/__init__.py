"""Looking at a study: picking a trade-off, the dashboard."""
