"""The screen: commands parse, make one call and show what came of it."""
