"""Studies that search beside each other: the contract of what brings one what the others have found."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from sae_moo.study.record import Ended, Inherited


@dataclass(frozen=True, slots=True)
class Migrant:
    """A trial of another study that this one takes over.

    Args:
        record: the trial as that study has it, with a result on every task of this one.
        source: where it was evaluated.
    """

    record: Ended
    source: Inherited


class Migration(Protocol):
    """Brings a study what others have found.

    What it brings depends on how far the others are, so a study is not the same when it is run again; it is resumed as
    it was, since whatever arrived was written into it.
    """

    def due(self, made: int) -> bool:
        """Say whether it is time to look at the others.

        Args:
            made: evaluations that this study has made itself so far.
        """

    def arrivals(self, known: Collection[str], whole: bool) -> Sequence[Migrant]:
        """Return what this study takes over now.

        Args:
            known: identities of the recipes (`Ended.digest`) that it has results of.
            whole: whether to bring all members of the others' fronts: it will make no more evaluations.

        Raises:
            InputError: if the trials of another study would not mean the same here.
            StorageError: if what another study is stored in cannot be reached.
        """
