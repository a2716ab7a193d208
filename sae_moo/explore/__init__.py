"""Looking at a run: `run` opens one, `view` is what was read of it at one moment.

`decide` picks a trade-off and says what it costs, `draw` turns a view into figures, `pages` puts them together.
"""
