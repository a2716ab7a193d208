"""How a merge will score, said without making it: features of pairs, what was observed, what is learned of both."""
