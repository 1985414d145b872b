# SPDX-License-Identifier: Apache-2.0
"""Results are written whole, and only where a file can be."""

from pathlib import Path

import pytest

from vt_sglang.chat.files import check_writable, write_whole


def test_written_in_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for content in (b"first", b"second"):
        check_writable(path)
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_one_folder_is_made_but_not_by_the_check(tmp_path: Path) -> None:
    path = tmp_path / "report" / "result.json"
    check_writable(path)
    assert list(tmp_path.iterdir()) == []
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"
    with pytest.raises(OSError, match=r"there is no folder .*/two/three, nor one to make it in"):
        write_whole(tmp_path / "two" / "three" / "result.json", b"content")
    assert list(tmp_path.iterdir()) == [path.parent]


def test_a_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_whole(link, b"through it")
    assert link.is_symlink()
    assert target.read_bytes() == b"through it"


@pytest.mark.parametrize("function", [check_writable, lambda path: write_whole(path, b"x")])
@pytest.mark.parametrize(
    "path",
    [
        "/dev/null",
        "/proc",
        "/proc/result.json",
        "/proc/no/result.json",
        "/dev/null/result.json",
        "/no/such/folder/result.json",
    ],
)
def test_where_nothing_can_be_written(function: object, path: str) -> None:
    with pytest.raises(OSError, match=r"."):
        function(Path(path))  # type: ignore[operator]
    assert Path("/dev/null").is_char_device()
