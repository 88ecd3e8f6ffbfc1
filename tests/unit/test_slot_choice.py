"""Which slot a conversation gets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from taste_grpc.dialogue.language_model import Message
from taste_grpc.dialogue.slot_choice import SlotChoice

SYSTEM = Message("system", "be kind")


def chat(*texts: str) -> list[Message]:
    return [SYSTEM, *(Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts))]


def used(choice: SlotChoice, messages: Sequence[Message]) -> int:
    """The slot that was lent for `messages` and came back."""
    with choice.lend(messages) as slot:
        return slot


def test_a_conversation_keeps_its_slot() -> None:
    choice = SlotChoice(3)
    first, second = used(choice, chat("cats", "meow")), used(choice, chat("dogs", "woof"))
    assert first != second
    assert used(choice, chat("cats", "meow", "why?")) == first
    assert used(choice, chat("dogs", "woof", "why?")) == second
    assert used(choice, chat("cats", "meow", "why?", "so", "really?")) == first


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(chat("b", "B", "c", "C", "d"), id="oldest turn left out"),
        pytest.param(chat("c", "C", "d"), id="two turns left out"),
        pytest.param(chat("a", "A", "b", "B", "other"), id="last turn was cancelled"),
        pytest.param([Message("system", "be quick"), *chat("a", "A", "b", "B", "c", "C", "d")[1:]], id="other system"),
    ],
)
def test_it_is_known_again_by_what_is_left_of_it(later: list[Message]) -> None:
    choice = SlotChoice(3)
    slot = used(choice, chat("a", "A", "b", "B", "c"))
    for stranger in ("x", "y"):
        assert used(choice, chat(stranger)) != slot
    assert used(choice, later) == slot


def test_the_same_first_words_are_not_the_same_conversation() -> None:
    choice = SlotChoice(2)
    first = used(choice, chat("hello", "hi", "how are you?"))
    assert used(choice, chat("hello")) != first
    assert used(choice, chat("hello", "hi", "how are you?", "fine", "good")) == first


def test_strangers_get_the_slot_that_was_idle_for_longest() -> None:
    choice = SlotChoice(3)
    order = [used(choice, chat(name)) for name in "abc"]
    assert sorted(order) == [0, 1, 2]
    assert used(choice, chat("a", "A", "more")) == order[0]
    assert [used(choice, chat(name)) for name in "de"] == order[1:]


def test_a_slot_that_is_lent_is_lent_once() -> None:
    choice = SlotChoice(2)
    with choice.lend(chat("a")) as first, choice.lend(chat("a")) as second:
        assert {first, second} == {0, 1}


def test_a_slot_comes_back_after_an_error() -> None:
    choice = SlotChoice(1)
    with pytest.raises(ZeroDivisionError), choice.lend(chat("a")):
        raise ZeroDivisionError
    assert used(choice, chat("b")) == 0
