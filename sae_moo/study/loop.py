"""The study: ask -> execute -> record -> tell, resumed by replaying its trials into a fresh searcher."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sae_moo.errors import Hint, InputError, Interrupted, RunError
from sae_moo.objectives import Evaluation
from sae_moo.objectives.front import Front
from sae_moo.recipe import Recipe, digest, dumps
from sae_moo.searchers.finishing import REPAIR, Finishing
from sae_moo.searchers.searcher import Hosting, Inheriting, Proposal, Recalling, Searcher
from sae_moo.study.events import Arrived, Begun, Exhausted, Finished, Listener, Resumed, Spent
from sae_moo.study.executor import Answer, Executor, Job
from sae_moo.study.migration import Migration
from sae_moo.study.plotted import Plotted
from sae_moo.study.record import Ended, founding, own, told, weight_of
from sae_moo.study.streak import Streak
from sae_moo.study.trials import TrialStorage


@dataclass(frozen=True, slots=True)
class _Out:
    """A candidate that was asked for and not yet told.

    Args:
        proposal: the candidate.
        identity: what proposals with the same result have in common, see `record.Asked`.
        rivals: the front as it was when it was asked for, where candidates race.
    """

    proposal: Proposal
    identity: str
    rivals: Front[Evaluation] | None


class Study:
    """Runs a search until its budget of trials is used up.

    Args:
        storage: where trials are written.
        searcher: proposes recipes; fresh, it is brought up to date by replay.
        executor: evaluates them.
        fingerprints: expert name -> content fingerprint, ``base`` among them.
        groups: parameter group names in the pool's order.
        tensors: parameter group and number of prunable weights of each tensor, in the pool's order; read where
            sparsities differ by tensor.
        evaluations: budget: number of trials in the end, earlier ones counted.
        versions: of the software, kept with every trial.
        listener: told of every event.
        rivals: if given, candidates race: this says what for, with an empty front. The first generation does not, since
            what it answers is what later ones are bred from and compared with.
        by_generation: whether candidates race against the front as it was when their generation began, so that it makes
            no difference who is told first; else against all that was told when they were asked for.
        tokens: a second budget: no more candidates are asked for once evaluations took so many forward tokens, those of
            earlier trials counted, those of repaired ones not; None: any number.
        finishing: asks for repaired members of the front once the budget is used up; on top of it. None: nobody does.
        failures: failed evaluations in a row after which it stops; 0: never. Running again goes on, and counts anew.
        migration: brings what studies that search beside this one have found; None: there are none.
    """

    def __init__(
        self,
        storage: TrialStorage,
        searcher: Searcher,
        executor: Executor,
        *,
        fingerprints: Mapping[str, str],
        groups: Sequence[str],
        tensors: Sequence[tuple[int, int]] = (),
        evaluations: int,
        versions: str,
        listener: Listener = lambda event: None,
        rivals: Front[Evaluation] | None = None,
        by_generation: bool = False,
        tokens: int | None = None,
        finishing: Finishing | None = None,
        failures: int = 0,
        migration: Migration | None = None,
    ) -> None:
        self._storage = storage
        self._searcher = searcher
        self._executor = executor
        self._fingerprints = dict(fingerprints)
        self._plotted = Plotted(tuple(fingerprints), groups, tensors)
        self._budget = evaluations
        self._versions = versions
        self._listener = listener
        self._rivals = rivals
        self._by_generation = by_generation
        self._contenders: dict[int, tuple[int, Evaluation]] = {}  # told, not among the rivals yet, with generations
        self._tokens = tokens
        self._spent = 0
        self._finishing = Finishing() if finishing is None else finishing
        self._ended: dict[int, tuple[Proposal, Evaluation]] = {}  # told, what finishes has not heard of it yet
        self._streak = Streak(failures)
        self._migration = migration
        self._asked = 0  # of the searcher
        self._dry = False  # the searcher has nothing left to try
        self._told = 0
        self._made = 0  # those told that this study evaluated itself
        self._proposals: dict[int, _Out] = {}  # asked for, not yet told
        self._first_with: dict[str, tuple[int, Evaluation]] = {}  # identity -> first trial that evaluated it
        self._twins: dict[str, list[int]] = {}  # identity that is being evaluated -> trials that wait for it
        self._digests: set[str] = set()  # of what there are results of
        self._number_of: dict[Recipe, int] = {}

    def run(self) -> None:
        """Resume if there are trials, then search on.

        Raises:
            InputError: if the stored trials are not what this search would have asked for, tokens are a budget and one
                of them does not tell how many it took, there are no texts for the repairs to come, or others search
                beside it and its searcher, or their studies, cannot be searched together.
            Interrupted: on Ctrl-C; every finished evaluation is stored, and running again goes on.
            RunError: if the search cannot go on: all its first candidates failed, or as many in a row as may; what was
                evaluated is stored.
        """
        try:
            if self._migration is not None and not isinstance(self._searcher, Hosting):
                raise InputError("study.islands: the searcher takes in nothing that other searches find")
            self._replay()
            if self._finishing.count and self._wanting:
                self._finishing.calibration()  # what is wrong with the texts is told now, not after the search
            while self._proposals or self._wanting:
                if self._streak.over:
                    raise RunError(
                        f"stopped after {self._made} evaluations: {self._streak.diagnosis()}. All are saved, and the "
                        "same search goes on from here; executor.failures says how many in a row may fail"
                    )
                self._take_over()
                self._submit()
                if not self._executor.busy:
                    if self._proposals:
                        continue
                    break
                self._receive(self._executor.wait())
            self._take_over(whole=True)
            asked, budget = self._asked + self._finishing.asked, self._budget + self._finishing.count
            unproposed = max(0, self._budget - self._asked)
            unrepaired = max(0, self._finishing.count - self._finishing.asked)
            if self._tokens is not None and self._spent >= self._tokens and unproposed:
                self._listener(Spent(asked, self._spent, self._tokens))
            elif unproposed or unrepaired:
                self._listener(Exhausted(asked, budget, unproposed, unrepaired))
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped after {self._made} evaluation{'' if self._made == 1 else 's'}; all are saved"
            ) from None

    @property
    def _left(self) -> bool:
        """Whether the budgets allow to ask the searcher for one more candidate, and it may have one."""
        within = self._tokens is None or self._spent < self._tokens
        return within and self._asked < self._budget and not self._dry

    @property
    def _wanting(self) -> bool:
        """Whether there are candidates to ask for: of the search, then of those that finish it."""
        self._settle()
        return self._left or self._finishing.left

    @property
    def _searching(self) -> bool:
        """Whether candidates that the searcher asked for are out."""
        return any(out.proposal.operator != REPAIR for out in self._proposals.values())

    def _next(self) -> Proposal | None:
        """Ask for a candidate; None if there is none until others have ended, or none at all."""
        if self._left:
            proposals = self._searcher.ask(1)
            if proposals:
                return proposals[0]
            self._dry = not self._searching
        if self._searching:
            return None
        self._settle()
        return self._finishing.ask()  # of the whole front

    def _submit(self) -> None:
        while self._executor.free:
            proposal = self._next()
            if proposal is None:
                return
            name, allocations = digest(proposal.recipe, self._fingerprints), _allocations(proposal)
            number = self._storage.begin(
                proposal,
                name,
                parents=[self._number_of[parent] for parent in proposal.parents],
                params=self._plotted.of(proposal),
                asked_after=self._told,
                versions=self._versions,
                allocations=allocations,
            )
            self._out(number, proposal, allocations or name)
            self._launch(number)

    def _out(self, number: int, proposal: Proposal, identity: str) -> None:
        finishes = proposal.operator == REPAIR
        self._asked += not finishes
        races = proposal.generation > 0 and not finishes
        self._proposals[number] = _Out(proposal, identity, self._front_before(proposal.generation) if races else None)

    def _front_before(self, generation: int) -> Front[Evaluation] | None:
        """Return the front that a candidate of a generation races against, None if nobody races."""
        if self._rivals is not None:
            for number in sorted(self._contenders):  # as they were asked for, whoever was told first
                if self._contenders[number][0] < generation:
                    self._rivals = self._rivals.after(self._contenders.pop(number)[1])
        return self._rivals

    def _settle(self) -> None:
        """Let what finishes hear of all that has ended, as it was asked for, unless some of it is still to come."""
        if not self._searching:
            for number in sorted(self._ended):
                self._finishing.tell(*self._ended.pop(number))

    def _launch(self, number: int) -> None:
        out = self._proposals[number]
        known = self._first_with.get(out.identity)
        if known is not None:
            first, evaluation = known
            self._finish(Answer(number, evaluation), repeats=first)
        elif out.identity in self._twins:  # it is being evaluated: this one repeats it once it has ended
            self._twins[out.identity].append(number)
        else:
            self._twins[out.identity] = []
            self._executor.submit(Job(number, (out.proposal.recipe, *out.proposal.alternatives), out.rivals))
            self._listener(Begun(number, out.proposal))

    def _receive(self, answer: Answer) -> None:
        """Finish what was evaluated, and what proposes the same."""
        twins = self._twins.pop(self._proposals[answer.number].identity)
        self._finish(answer)
        for twin in twins:
            self._launch(twin)

    def _finish(self, answer: Answer, repeats: int | None = None) -> None:
        number, evaluation = answer.number, answer.evaluation
        proposal = self._proposals[number].proposal
        chosen = (
            self._plotted.levels(evaluation.recipe) if proposal.alternatives else {}
        )  # it was not known before which one
        record = self._storage.finish(number, proposal, answer, self._told, repeats, chosen)
        if repeats is None:
            self._streak.take(evaluation)
        self._take_in(record)
        self._listener(Finished(record))

    def _take_in(self, record: Ended) -> None:
        """Tell the searcher of a finished trial, as it was stored: a resumed run then sees just what this one saw."""
        if record.inherited is not None:
            self._host(record)
            return
        self._know(record)
        self._made += 1
        proposal = self._proposals.pop(record.number).proposal
        if proposal.operator == REPAIR:
            return  # a search that goes on races against nobody, and pays for nothing, that it did not ask for
        if record.repeats is None:
            self._spent += 0 if self._tokens is None else self._tokens_of(record)
            self._contend(record)
        self._ended[record.number] = (proposal, record.evaluation)
        self._searcher.tell(proposal, record.evaluation)

    def _know(self, record: Ended) -> None:
        """Count one more result, which later candidates may repeat or be bred from."""
        self._told += 1
        self._first_with.setdefault(record.identity, (record.number, record.evaluation))
        self._number_of.setdefault(record.recipe, record.number)
        self._digests.add(record.digest)

    def _contend(self, record: Ended) -> None:
        """Let candidates to come race against a result."""
        if self._by_generation:
            self._contenders[record.number] = (record.generation, record.evaluation)
        elif self._rivals is not None:
            self._rivals = self._rivals.after(record.evaluation)

    def _take_over(self, whole: bool = False) -> None:
        """Take over what others have found, if it is time for it; at the end, the whole of their fronts."""
        if self._migration is None or not (whole or self._migration.due(self._made)):
            return
        for migrant in self._migration.arrivals(self._digests, whole):
            params = {weight_of(name): 0.0 for name in self._fingerprints} | dict(migrant.record.params)
            record = replace(migrant.record, parents=())
            adopted = self._storage.adopt(record, migrant.source, self._told, params)
            self._host(adopted)
            self._listener(Arrived(adopted))

    def _host(self, record: Ended) -> None:
        """Take in a trial that was taken over, as it was stored."""
        assert isinstance(self._searcher, Hosting)
        self._know(record)
        self._contend(record)
        self._ended[record.number] = (Proposal(record.asked, operator=record.operator), record.evaluation)
        self._searcher.host(record.evaluation)

    def _replay(self) -> None:
        start = time.perf_counter()
        records = self._storage.records()
        finished = told(records)
        self._inherit(founding(records))
        for record in own(records):
            while self._told < record.asked_after:
                self._take_in(finished[self._told])
            if record.operator == REPAIR:
                self._settle()
                again = self._finishing.recall(record.asked)
            elif isinstance(self._searcher, Recalling):
                again = self._searcher.recall(record.vector)
            else:
                again = next(iter(self._searcher.ask(1)), None)
            if again is None or again.recipe != record.asked or _allocations(again) != record.allocations:
                raise InputError(
                    f"trial {record.number} of the study is not what this search would have asked for: the study was "
                    "made by another version, or on a machine with other arithmetic",
                    Hint.ANEW,
                )
            self._out(record.number, again, record.identity)
        while self._told < len(finished):
            self._take_in(finished[self._told])
        if records:
            self._listener(Resumed(records, time.perf_counter() - start))
        for number in sorted(self._proposals):  # begun and not ended: killed in flight
            while not self._executor.free:
                self._receive(self._executor.wait())
            if number in self._proposals:  # it may have repeated another that was waited for
                self._launch(number)

    def _inherit(self, records: Sequence[Ended]) -> None:
        """Take in what an earlier study has evaluated, before anything is asked for."""
        if not records:
            return
        if not isinstance(self._searcher, Inheriting):
            raise InputError("study.extends: the searcher does not take over what an earlier study has evaluated")
        for record in records:
            if not record.evaluation.ok:  # of a part of the tasks: it may be asked for again
                self._told += 1
                continue
            self._know(record)
            self._finishing.tell(Proposal(record.asked, operator=record.operator), record.evaluation)
            self._rivals = None if self._rivals is None else self._rivals.after(record.evaluation)
        self._searcher.inherit([record.evaluation for record in records])

    def _tokens_of(self, record: Ended) -> int:
        if record.evaluation.spent is None:
            raise InputError(
                f"trial {record.number} does not tell how many tokens it took: search.tokens is for studies that "
                "counted them from the start",
                Hint.ANEW,
            )
        return record.evaluation.spent


def _allocations(proposal: Proposal) -> str | None:
    """Return the identity of a proposal with its alternatives, None if it has none; experts are bound in elsewhere."""
    if not proposal.alternatives:
        return None
    keys = [recipe.key for recipe in (proposal.recipe, *proposal.alternatives)]
    return hashlib.sha256(dumps(keys).encode()).hexdigest()
