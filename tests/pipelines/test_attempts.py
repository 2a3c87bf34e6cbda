"""Every order of events that a cluster may bring, without a cluster."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipelines._attempts import Attempts, Cancel, End, Ending, GiveUp, Report, Submit, Verdict

WAIT = 60.0


class AnyOrder(RuleBasedStateMachine):
    """A cluster in which anything may happen at any time, and all that has to hold meanwhile."""

    strict = False

    def __init__(self) -> None:
        super().__init__()
        self.now = self.workers_seen = 0.0
        self.attempts = Attempts(wait=WAIT, now=self.now, strict=self.strict)
        self.threads = self.stuck = self.offered = 0
        self.running: set[int] = set()
        self.tries: dict[int, int] = {}
        self.company: dict[int, bool] = {}  # whether the present attempt has ever been beside another
        self.late: set[int] = set()
        self.verdicts: dict[int, Verdict] = {}
        self.all_offered = self.stopped = self.failed = False
        self.end: End | GiveUp | None = None

    def obey(self, actions, ended: tuple[int, Ending] | None = None) -> None:
        for action in actions:
            assert self.end is None, "something is asked after the end"
            match action:
                case Submit(slide):
                    self.begin(slide)
                case Cancel(slide):
                    assert slide in self.running
                    assert slide in self.late
                case Report(slide, verdict):
                    self.check(slide, verdict, ended)
                case _:
                    self.end = action

    def begin(self, slide: int) -> None:
        assert not self.stopped, "begun after a stop"
        assert slide not in self.verdicts
        assert slide not in self.running
        assert slide not in self.late, "a late slide is tried again"
        self.tries[slide] = self.tries.get(slide, 0) + 1
        assert self.tries[slide] == 1 or (self.all_offered and not self.running), "tried again, but not alone"
        self.running.add(slide)
        for each in self.running:
            self.company[each] = len(self.running) > 1 or (each != slide and self.company[each])

    def check(self, slide: int, verdict: Verdict, ended: tuple[int, Ending] | None) -> None:
        assert slide not in self.verdicts, "two outcomes"
        assert slide not in self.running
        how = ended[1] if ended and ended[0] == slide else None
        if verdict is Verdict.AS_RETURNED:
            assert how in {Ending.DONE, Ending.FAILED}
        elif verdict is Verdict.TIMED_OUT:
            assert slide in self.late
        else:
            assert (how, self.tries[slide], self.company[slide]) == (Ending.DIED, 2, False)
        self.verdicts[slide] = verdict
        self.failed |= not (verdict is Verdict.AS_RETURNED and how is Ending.DONE)

    @precondition(lambda self: self.end is None)
    @rule(data=st.data(), last=st.booleans())
    def offer(self, data, last):
        room = self.attempts.room
        most = 2 * (self.threads - self.stuck)
        assert room <= max(0, max(most, 8 if most > 0 else 1) - len(self.running))
        if room:
            count = data.draw(st.integers(0, room))
            self.all_offered |= last
            self.offered += count
            self.obey(self.attempts.offer(count, last=last))

    @precondition(lambda self: self.end is None)
    @rule(threads=st.integers(0, 6), seconds=st.floats(0, WAIT * 0.7))
    def time_passes(self, threads, seconds):
        self.now += seconds
        self.threads = threads
        if threads > self.stuck:
            self.workers_seen = self.now
        actions = self.attempts.workers(threads, self.now)
        assert (actions == [GiveUp.NO_WORKERS]) == (self.now - self.workers_seen > WAIT)
        self.obey(actions)

    @precondition(lambda self: self.end is None)
    @rule()
    def stop(self):
        self.stopped = True
        self.obey(self.attempts.stop())

    @precondition(lambda self: self.end is None and self.running)
    @rule(data=st.data(), ending=st.sampled_from([*Ending, Ending.DONE, Ending.DIED]))
    def attempt_ends(self, data, ending):
        slide = data.draw(st.sampled_from(sorted(self.running)))
        self.running.remove(slide)
        actions = self.attempts.ended(slide, ending)
        assert (GiveUp.NO_SCHEDULER in actions) == (ending is Ending.LOST and slide not in self.late)
        self.obey(actions, (slide, ending))

    @precondition(lambda self: self.end is None and self.offered)
    @rule(data=st.data(), worker_dies=st.booleans())
    def time_is_up(self, data, worker_dies):
        """Also of an attempt that has ended, and of a slide that has its outcome: the word may come late."""
        slide = data.draw(st.integers(0, self.offered - 1))
        self.late.add(slide)
        self.stuck += not worker_dies
        actions = self.attempts.timed_out(slide, worker_dies=worker_dies)
        assert (actions == [Cancel(slide)]) == (slide in self.running)
        self.obey(actions)

    @precondition(lambda self: self.end is not None)
    @rule()
    def nothing_happens_after_the_end(self):
        assert self.attempts.room == 0

    @invariant()
    def nothing_is_lost(self):
        if self.end is None:
            assert self.running or self.attempts.room, "nothing is under way, and nothing is asked for"
        elif self.end == End() and not self.stopped:
            assert (self.strict and self.failed) or self.verdicts.keys() == set(range(self.offered))
        if self.strict and self.failed:
            assert self.end is not None
        assert self.attempts.room == 0 or not (self.stopped or self.all_offered or self.end)

    def teardown(self):
        """Whatever is under way ends well, and with it the run."""
        if self.end is None:
            self.all_offered = True
            self.obey(self.attempts.offer(0, last=True))
        while self.end is None:
            slide = min(self.running)
            self.running.remove(slide)
            self.obey(self.attempts.ended(slide, Ending.DONE), (slide, Ending.DONE))
        self.nothing_is_lost()


class AnyOrderStrict(AnyOrder):
    strict = True


TestAnyOrder = AnyOrder.TestCase
TestAnyOrderStrict = AnyOrderStrict.TestCase
TestAnyOrder.settings = TestAnyOrderStrict.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)


def test_offering_more_slides_than_there_is_room_for_is_an_error():
    with pytest.raises(ValueError, match="2 slides were offered, but there is room for 1"):
        Attempts(wait=WAIT, now=0.0).offer(2, last=False)
