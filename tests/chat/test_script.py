# SPDX-License-Identifier: Apache-2.0
from vt_sglang.chat.dialogues import Dialogue, Exchange, Fork
from vt_sglang.chat.encoding import ByteEncoding
from vt_sglang.chat.script import RESERVED_TOKENS, Script, write

DIALOGUE = Dialogue(None, (Exchange("abc", "0123456789"), Exchange("de", "45"), Exchange("f", None)))
# Tokens of the questions: 6, 6, 5; of an answer that is generated below: 4.
AFTER_TURN = [10, 20, 29]


def script(most_tokens: int, dialogue: Dialogue = DIALOGUE, given: bool = False) -> Script:
    options = {"output_tokens": 4, "most_tokens": most_tokens + RESERVED_TOKENS, "given_answers": given}
    return write([dialogue], ByteEncoding(), **options)[0]


def test_all_turns_fit() -> None:
    encoding = ByteEncoding()
    turns = script(AFTER_TURN[2]).turns
    assert [turn.question for turn in turns] == [
        encoding.opening(None, "abc"),
        encoding.following("de"),
        encoding.following("f"),
    ]
    assert [turn.answer for turn in turns] == [None] * 3
    assert script(AFTER_TURN[2]).lost_turns == 0


def test_turns_that_do_not_fit_are_left_out_and_counted() -> None:
    for kept, most in ((3, AFTER_TURN[2]), (2, AFTER_TURN[2] - 1), (2, AFTER_TURN[1]), (1, AFTER_TURN[1] - 1), (0, 9)):
        cut = script(most)
        assert (len(cut.turns), cut.lost_turns) == (kept, 3 - kept)


def test_given_answers_count_with_their_own_length() -> None:
    given = script(6 + 10 + 6 + 4, given=True)
    assert [turn.answer for turn in given.turns] == [list(b"0123456789"), list(b"45")]
    assert given.lost_turns == 1
    assert len(script(6 + 10 + 6 + 3, given=True).turns) == 1


def test_a_fork_plays_what_comes_after_the_shared_exchanges() -> None:
    fork = Dialogue(None, DIALOGUE.exchanges, Fork(parent=0, exchanges=1))
    assert script(AFTER_TURN[2], fork).played == range(1, 3)
    cut = script(AFTER_TURN[0], fork)
    assert (list(cut.played), cut.lost_turns) == ([], 2)
    assert script(AFTER_TURN[0] - 1, fork).lost_turns == 2
