"""Who writes the trials of a study: entry by entry, or, to a journal, without reading anything of it back."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.storages import BaseStorage
from optuna.storages.journal._storage import JournalOperation  # the numbers are part of the files, and stay
from optuna.trial import FrozenTrial, TrialState

from sae_moo.errors import StorageError
from sae_moo.files.room import KEPT
from sae_moo.study.journal import Journal

# Numbers worth plotting are clipped into this range: Optuna wants a distribution that holds them.
PARAM_RANGE = (-10.0, 10.0)
PLOTTED = FloatDistribution(*PARAM_RANGE)
_PLOTTED = distribution_to_json(PLOTTED)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trial ends.

    Args:
        state: a state in which it has ended.
        values: of the objectives, None for one that did not go well.
        attributes: what it keeps of its evaluation.
        limits: name -> by how much a limit is broken, none of them NaN.
        params: numbers worth plotting that were not known when it began.
    """

    state: TrialState
    values: Sequence[float] | None
    attributes: Mapping[str, Any]
    limits: Mapping[str, float]
    params: Mapping[str, float]

    def write(self, storage: BaseStorage, identity: int) -> None:
        """Write it to a storage; what ends the trial comes last."""
        for name, value in self.params.items():
            storage.set_trial_param(identity, name, value, PLOTTED)
        for key, value in self.attributes.items():
            storage.set_trial_user_attr(identity, key, value)
        for key, amount in self.limits.items():
            storage.set_trial_system_attr(identity, key, amount)
        storage.set_trial_state_values(identity, self.state, self.values)


class Writer:
    """Writes trials to any storage.

    Args:
        storage: the storage.
        study: the study, as the storage calls it.
    """

    def __init__(self, storage: BaseStorage, study: int) -> None:
        self._storage = storage
        self._study = study

    def begin(self, params: dict[str, float], attributes: dict[str, Any]) -> tuple[int, int]:
        """Write a trial that runs from now on, and return what the storage calls it, and its number.

        Args:
            params: numbers worth plotting, within their range.
            attributes: what says what is evaluated.
        """
        template = FrozenTrial(
            number=-1,  # the storage gives it one, and an identity
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            intermediate_values={},
            system_attrs={},
            params=params,
            distributions=dict.fromkeys(params, PLOTTED),
            user_attrs=attributes,
        )
        identity = int(self._storage.create_new_trial(self._study, template_trial=template))
        return identity, int(self._storage.get_trial_number_from_id(identity))

    def finish(self, identity: int, ending: Ending) -> bool:
        """Write how a trial ends, and say whether it is sure that the study holds just what was written here."""
        ending.write(self._storage, identity)
        return False


class JournalWriter(Writer):
    """Writes the trials of a study to a journal, of which it reads nothing as long as nobody else writes to it.

    Optuna reads again and applies every entry that it has written, a copy of the trial for each. Here the same entries
    are only written: those of a trial's end at once, and waited for once. Nobody waits for the disk when a trial
    begins: whatever is waited for next comes after it. Killed, or cut off from power, a search loses no trial that has
    ended; those that were being evaluated are evaluated again. What a trial is called is counted on from the one
    before; wherever somebody else has written in between, Optuna reads the journal and says it.

    It serves one thread. Interrupted anywhere, it does not know any more who comes next, and Optuna says it.
    """

    def __init__(self, storage: Journal, study: int) -> None:
        super().__init__(storage, study)
        self._file = storage.file
        self._worker_id = str(uuid.uuid4())  # by which Optuna tells writers apart
        self._newest = -1  # what the storage calls the trial that was begun last
        self._last: tuple[int, int] | None = None  # the same with its number; None: who comes next is not known
        self._size: int | None = None  # of the journal after what was last written here
        self._untouched: set[int] = set()  # trials that run, of which nobody else can have written anything

    def begin(self, params: dict[str, float], attributes: dict[str, Any]) -> tuple[int, int]:
        """Write a trial that runs from now on, and return what the storage calls it, and its number; see `Writer`.

        Raises:
            StorageError: if it cannot be written, or the journal is not the one that it was.
        """
        last, self._last = self._last, None
        if last is not None and self._written_alone([self._beginning(params, attributes)], wait=False):
            identity, number = last[0] + 1, last[1] + 1
        else:
            identity, number = super().begin(params, attributes)
            if identity <= self._newest:
                raise StorageError(f"{self._file.path}: a trial that has begun is not in it; {KEPT}")
            self._size = self._file.size
        self._newest = identity
        self._untouched.add(identity)
        self._last = identity, number
        return identity, number

    def finish(self, identity: int, ending: Ending) -> bool:
        """Write how a trial ends, and say whether it is sure that the study holds just what was written here.

        Raises:
            StorageError: if it cannot be written; the trial then still runs.
        """
        last, self._last = self._last, None
        entries = self._ending(identity, ending)
        if not self._written_alone(entries, wait=True):
            self._file.append(entries, wait=True)
            return False
        self._last = last
        if identity not in self._untouched:
            return False
        self._untouched.remove(identity)
        return True

    def _written_alone(self, entries: Sequence[Mapping[str, Any]], *, wait: bool) -> bool:
        """Append entries, unless somebody else has written since this one did."""
        size = None if self._size is None else self._file.append(entries, wait=wait, behind=self._size)
        if size is None:
            self._untouched.clear()
        self._size = size
        return size is not None

    def _beginning(self, params: dict[str, float], attributes: dict[str, Any]) -> dict[str, Any]:
        return {
            "op_code": JournalOperation.CREATE_TRIAL,
            "worker_id": self._worker_id,
            "study_id": self._study,
            "datetime_start": _now(),
            "state": TrialState.RUNNING,
            "value": None,
            "values": None,
            "distributions": dict.fromkeys(params, _PLOTTED),
            "params": params,
            "user_attrs": attributes,
            "system_attrs": {},
            "intermediate_values": {},
        }

    def _ending(self, identity: int, ending: Ending) -> list[dict[str, Any]]:
        def entry(operation: int, **rest: Any) -> dict[str, Any]:
            return {"op_code": operation, "worker_id": self._worker_id, "trial_id": identity, **rest}

        parameter, attribute, limit = (
            JournalOperation.SET_TRIAL_PARAM,
            JournalOperation.SET_TRIAL_USER_ATTR,
            JournalOperation.SET_TRIAL_SYSTEM_ATTR,
        )
        entries = [
            entry(parameter, param_name=name, param_value_internal=value, distribution=_PLOTTED)
            for name, value in ending.params.items()
        ]
        entries += [entry(attribute, user_attr={key: value}) for key, value in ending.attributes.items()]
        entries += [entry(limit, system_attr={key: amount}) for key, amount in ending.limits.items()]
        rest = {"state": ending.state, "values": ending.values, "datetime_complete": _now()}
        return [*entries, entry(JournalOperation.SET_TRIAL_STATE_VALUES, **rest)]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def writer_of(storage: BaseStorage, study: int) -> Writer:
    """Return who writes the trials of a study.

    Args:
        storage: where it lies.
        study: the study, as the storage calls it.
    """
    return JournalWriter(storage, study) if isinstance(storage, Journal) else Writer(storage, study)
