"""What a conversation remembers, and what a language model is shown of it."""

from __future__ import annotations

from taste_grpc.dialogue.language_model import Message
from taste_grpc.dialogue.memory import MAX_TURNS, Exchange, Memory


def test_turns_become_a_chat_that_ends_with_the_question() -> None:
    memory = Memory()
    memory.remember("Who are you?", "A voice.")
    memory.remember("Whose?", "Mine.")
    assert memory.messages("Be kind.", "Really?") == [
        Message("system", "Be kind."),
        Message("user", "Who are you?"),
        Message("assistant", "A voice."),
        Message("user", "Whose?"),
        Message("assistant", "Mine."),
        Message("user", "Really?"),
    ]
    assert memory.updates == 2


def test_without_instructions_there_is_no_system_message() -> None:
    assert Memory().messages("", "Hello?") == [Message("user", "Hello?")]


def test_questions_without_an_answer_go_before_the_next_one() -> None:
    memory = Memory([Exchange("One?", ""), Exchange("Two?", "Yes."), Exchange("Three?", ""), Exchange("Four?", "")])
    assert memory.messages("", "Five?") == [
        Message("user", "One?\nTwo?"),
        Message("assistant", "Yes."),
        Message("user", "Three?\nFour?\nFive?"),
    ]


def test_the_oldest_turns_are_forgotten() -> None:
    memory = Memory()
    for number in range(MAX_TURNS + 3):
        memory.remember(f"question {number}", f"answer {number}")
    assert len(memory.exchanges) == MAX_TURNS
    assert memory.exchanges[0] == Exchange("question 3", "answer 3")
    assert memory.updates == MAX_TURNS + 3
    assert len(Memory(memory.exchanges * 2).exchanges) == MAX_TURNS


def test_what_was_read_of_it_does_not_change() -> None:
    memory = Memory([Exchange("One?", "Yes.")])
    before = memory.exchanges
    memory.remember("Two?", "No.")
    assert before == (Exchange("One?", "Yes."),)
    assert memory.updates == 1
