"""The phases of a turn, and every transition there is not."""

from __future__ import annotations

import itertools

import pytest

from taste_grpc.dialogue.phases import IllegalTransitionError, Phase, TurnPhases

SPOKEN = (Phase.CAPTURING, Phase.THINKING, Phase.RESPONDING, Phase.COMPLETE, Phase.IDLE)
ROADS = {
    Phase.IDLE: (),
    Phase.CAPTURING: (Phase.CAPTURING,),
    Phase.THINKING: (Phase.CAPTURING, Phase.THINKING),
    Phase.RESPONDING: (Phase.CAPTURING, Phase.THINKING, Phase.RESPONDING),
    Phase.COMPLETE: (Phase.CAPTURING, Phase.COMPLETE),
    Phase.ERROR: (Phase.ERROR,),
}
LEGAL = {
    (Phase.IDLE, Phase.CAPTURING),
    (Phase.IDLE, Phase.THINKING),
    (Phase.IDLE, Phase.ERROR),
    (Phase.CAPTURING, Phase.THINKING),
    (Phase.CAPTURING, Phase.COMPLETE),
    (Phase.CAPTURING, Phase.ERROR),
    (Phase.THINKING, Phase.RESPONDING),
    (Phase.THINKING, Phase.COMPLETE),
    (Phase.THINKING, Phase.ERROR),
    (Phase.RESPONDING, Phase.COMPLETE),
    (Phase.RESPONDING, Phase.ERROR),
    (Phase.COMPLETE, Phase.IDLE),
    (Phase.ERROR, Phase.IDLE),
}


def at(phase: Phase) -> TurnPhases:
    phases = TurnPhases()
    for each in ROADS[phase]:
        phases.enter(each)
    return phases


@pytest.mark.parametrize(("current", "wanted"), list(itertools.product(Phase, Phase)))
def test_each_phase_leads_where_it_may_and_nowhere_else(current: Phase, wanted: Phase) -> None:
    phases = at(current)
    if (current, wanted) in LEGAL:
        phases.enter(wanted)
        assert phases.current is wanted
    else:
        with pytest.raises(IllegalTransitionError, match=f"{current.value} cannot become {wanted.value}"):
            phases.enter(wanted)
        assert phases.current is current


def test_turns_are_counted_when_the_next_may_begin() -> None:
    phases = TurnPhases()
    seen = []
    for _ in range(3):
        for phase in SPOKEN:
            seen.append(phases.turn)
            phases.enter(phase)
    assert seen == [0] * 5 + [1] * 5 + [2] * 5
    assert phases.turn == 3
