"""Colours that colour-blind readers tell apart, the same in pages and pictures."""

from __future__ import annotations

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE, GRID = "#b9c2cc", "#d5d9dd", "#e6e9ec"  # what is not of interest; lines to read by
SCALE = "Cividis"  # Nunez et al. 2018: the same to colour-blind readers
SIGNED = "PuOr_r"  # purple and orange, white at 0
