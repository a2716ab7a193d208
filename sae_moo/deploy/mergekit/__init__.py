"""Configurations of mergekit, read into recipes and written from them."""
