"""Colours that colour-blind readers tell apart, the same in pages and pictures."""

from __future__ import annotations

from dataclasses import dataclass

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE, GRID = "#b9c2cc", "#d5d9dd", "#e6e9ec"  # what is not of interest; lines to read by
SCALE = "Cividis"  # Nunez et al. 2018: the same to colour-blind readers
SIGNED = "PuOr_r"  # purple and orange, white at 0


@dataclass(frozen=True, slots=True)
class Mark:
    """How a model that others are held against is marked.

    Args:
        shape: ``square``, ``star`` or ``diamond``.
        colour: of the mark.
    """

    shape: str
    colour: str


MARKS = {"base": Mark("square", BLACK), "uniform average": Mark("star", PURPLE)}
EXPERT_MARK = Mark("diamond", ORANGE)


def mark_of(name: str) -> Mark:
    """Return the mark of a reference by its name; experts are marked alike."""
    return MARKS.get(name, EXPERT_MARK)
