"""Figures in print, by matplotlib."""
