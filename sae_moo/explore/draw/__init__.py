"""Figures: their numbers once, for the pages and for print alike."""
