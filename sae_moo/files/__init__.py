"""Files written whole or not at all, YAML with places, and what is kept for the next run on this machine."""
