"""Figures of pages, by plotly."""
