# SPDX-License-Identifier: Apache-2.0
import gzip
import json
from pathlib import Path

import pytest

from vt_sglang.chat.dialogues import Dialogue, DialogueError, Exchange, read


def line(*said: tuple[str, str], **more: object) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in said]} | more) + "\n"


ANSWERED = line(("user", "Ähm?"), ("assistant", "Yes."), ("user", "Why?"), ("assistant", "So."), source="a set")
OPEN = line(("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", "And?"))


@pytest.mark.parametrize("packed", [False, True])
def test_reads_lines_gzipped_or_not(tmp_path: Path, packed: bool) -> None:
    content = (ANSWERED + OPEN).encode()
    path = tmp_path / "dialogues"  # told from the content, not from the name
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read(path) == [
        Dialogue(None, (Exchange("Ähm?", "Yes."), Exchange("Why?", "So."))),
        Dialogue("Be brief.", (Exchange("Hello", "Hi."), Exchange("And?", None))),
    ]


def test_limit_leaves_later_lines_unread(tmp_path: Path) -> None:
    path = tmp_path / "dialogues"
    path.write_text(ANSWERED + "nonsense\n")
    assert len(read(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogates"),
        ("[]", "not an object with a list `messages`"),
        ('{"messages": "hello"}', "not an object with a list `messages`"),
        ('{"messages": [{"role": "user"}]}', "messages[0] is not an object with texts"),
        ('{"messages": [{"role": "user", "content": 3}]}', "messages[0] is not an object with texts"),
        (line(), "no message of role 'user'"),
        (line(("system", "only this")), "no message of role 'user'"),
        (line(("assistant", "first")), "'assistant' stands where one of role 'user' should"),
        (line(("user", "a"), ("user", "b")), "'user' stands where one of role 'assistant' should"),
        (line(("user", "a"), ("system", "late")), "'system' stands where one of role 'assistant' should"),
        (line(("user", "a"), ("tool", "b")), "'tool' stands where"),
    ],
)
def test_error_names_file_line_and_reason(tmp_path: Path, bad: str, reason: str) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(ANSWERED + bad)
    with pytest.raises(DialogueError) as caught:
        read(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert reason in str(caught.value)


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(ANSWERED.encode() + b'{"messages": "\xff"}')
    with pytest.raises(DialogueError, match=r"line 2: .*utf-8"):
        read(path)


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("\n" + ANSWERED + "\n\n" + ANSWERED + "\n[]")
    assert len(read(path, limit=2)) == 2
    with pytest.raises(DialogueError, match="line 7: not an object"):
        read(path)


def test_empty_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(DialogueError, match="line 1: the file is empty"):
        read(path)


def test_damaged_gzip_is_an_error_that_says_how_far_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(ANSWERED.encode())[:-12])
    with pytest.raises(DialogueError, match=r"cut\.jsonl\.gz, after line 0: "):
        read(path)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match="No such file"):
        read(tmp_path / "nowhere.jsonl")
