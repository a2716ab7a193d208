"""Scoring live models on tasks."""
