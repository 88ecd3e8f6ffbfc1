"""What of a conversation fits into a context."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taste_grpc.dialogue.context_window import fit
from taste_grpc.dialogue.language_model import Message
from taste_grpc.errors import LanguageModelError

SYSTEM = Message("system", "be kind")


def count(message: Message) -> int:
    """A token for each character, and one for the markers."""
    return len(message.text) + 1


def turns(*texts: str) -> list[Message]:
    """User and assistant by turns."""
    return [Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts)]


def test_what_fits_stays_as_it_is() -> None:
    messages = [SYSTEM, *turns("aa", "bb", "cc")]
    assert fit(messages, 8 + 9, count) == messages
    assert fit([], 0, count) == []


@pytest.mark.parametrize(("budget", "left"), [(15, 5), (14, 3), (9, 3), (8, 1), (3, 1)])
def test_the_oldest_turns_go_first_each_with_its_answer(budget: int, left: int) -> None:
    messages = turns("aa", "bb", "cc", "dd", "ee")
    assert fit(messages, budget, count) == messages[-left:]
    assert fit([SYSTEM, *messages], count(SYSTEM) + budget, count) == [SYSTEM, *messages[-left:]]


def test_a_greeting_goes_before_the_first_turn_does() -> None:
    messages = [Message("assistant", "hello"), *turns("aa", "bb", "cc")]
    assert fit(messages, 14, count) == messages[1:]


def test_users_that_were_never_answered_are_turns_too() -> None:
    messages = [Message("user", text) for text in ("aa", "bb", "cc")]
    assert fit(messages, 6, count) == messages[1:]


def test_each_message_is_counted_once() -> None:
    counted: list[Message] = []
    messages = [SYSTEM, *turns("aa", "bb", "cc", "dd", "ee")]
    fit(messages, 14, lambda message: counted.append(message) or count(message))
    assert sorted(counted, key=messages.index) == messages


def test_what_cannot_be_left_out_and_does_not_fit_is_an_error() -> None:
    with pytest.raises(LanguageModelError, match=r"the last message has 6 tokens, .* room for 5"):
        fit(turns("aa", "bb", "ccccc"), 5, count)
    with pytest.raises(
        LanguageModelError, match=r"the system message and the last message have 11 tokens, .* room for 10"
    ):
        fit([SYSTEM, *turns("aa", "bb", "cc")], 10, count)
    with pytest.raises(LanguageModelError, match="room for 0"):
        fit(turns("aa"), -7, count)


@given(
    st.booleans(), st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda n: len(n) % 2), st.integers(0, 90)
)
def test_as_much_as_possible_of_the_end_is_left(has_system: bool, lengths: list[int], budget: int) -> None:
    said = turns(*("x" * length for length in lengths))
    messages = [SYSTEM, *said] if has_system else said
    head = messages[: len(messages) - len(said)]
    possible = [said[at:] for at in range(0, len(said), 2)]
    fitting = [rest for rest in possible if sum(map(count, [*head, *rest])) <= budget]
    if fitting:
        assert fit(messages, budget, count) == [*head, *max(fitting, key=len)]
    else:
        with pytest.raises(LanguageModelError):
            fit(messages, budget, count)
