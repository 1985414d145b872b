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


SHAREGPT = [
    {"id": "a", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]},
    {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Ähm?"}]},
]
READ = [Dialogue(None, (Exchange("Hello", "Hi."),)), Dialogue("Be brief.", (Exchange("Ähm?", None),))]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["lines", "array", "indented array"])
def test_reads_conversations_of_sharegpt(tmp_path: Path, form: str, packed: bool) -> None:
    array = json.dumps(SHAREGPT, indent=1 if "indented" in form else None)
    content = ("\n".join(map(json.dumps, SHAREGPT)) if form == "lines" else array).encode()
    path = tmp_path / "dialogues"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read(path) == READ
    assert read(path, limit=1) == READ[:1]


def test_both_formats_may_stand_in_one_array(tmp_path: Path) -> None:
    path = tmp_path / "dialogues"
    path.write_text(json.dumps([SHAREGPT[0], json.loads(OPEN)]))
    assert [dialogue.system for dialogue in read(path)] == [None, "Be brief."]


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ('[{"conversations": []}]', "entry 1", "no message of role 'user'"),
        ('[{"conversations": [{"from": "gpt", "value": "x"}]}]', "entry 1", "'assistant' stands where"),
        ('[{"conversations": [{"from": "human"}]}]', "entry 1", "conversations[0] is not an object with texts `from`"),
        ('[{"conversations": [{"from": "human", "value": "\\ud800"}]}]', "entry 1", "surrogates"),
        ('[{"conversations": [{"from": "bot", "value": "x"}]}]', "entry 1", "a message of role 'bot' stands where"),
        ("[\n\n3]", "entry 1", "not an object with a list `messages` or `conversations`"),
        ("[\n\n{]", "entry 1 (line 3)", "Expecting property name"),
        ('[{"messages": []}', "entry 1", "no message of role 'user'"),
        ("[1 2]", "entry 1", "not an object"),
        ("[\n", "entry 1 (line 2)", "Expecting value"),
        ("[" * 100_000, "entry 1 (line 1)", "recursion"),
    ],
)
def test_error_names_the_entry_of_an_array(tmp_path: Path, content: str, place: str, reason: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(DialogueError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, {place}: ")
    assert reason in str(caught.value)


def test_an_array_that_goes_wrong_later(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    good = json.dumps(SHAREGPT[0])
    for content, place in (
        (f"[{good}\n{good}]", "entry 1 (line 2): neither"),
        (f"[{good},\n]", "entry 2 (line 2): Exp"),
    ):
        path.write_text(content)
        assert read(path, limit=1) == READ[:1]
        with pytest.raises(DialogueError) as caught:
            read(path)
        assert f"{path}, {place}" in str(caught.value)


def test_what_is_no_dialogue_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text(json.dumps([3, SHAREGPT[0], {"conversations": []}, SHAREGPT[1]]))
    bad: list[DialogueError] = []
    assert read(path, None, bad.append) == READ
    assert [str(error).partition(": ")[0] for error in bad] == [f"{path}, entry 1", f"{path}, entry 3"]
    path.write_text("[3]")
    with pytest.raises(DialogueError, match="no dialogue in it"):
        read(path, None, bad.append)
