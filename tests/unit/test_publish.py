# SPDX-License-Identifier: Apache-2.0
"""What is on the disk is old, new or absent, whatever happens (REL-02, REL-03, B01 to B03, L13)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heretic import durable, publish
from heretic.exceptions import DiskSpaceError, FileOperationError, OutputExistsError
from heretic.publish import (
    StagedFolder,
    checksums,
    require_space,
    staged_folder,
    verify_checksums,
    write_file,
)

CHILD = """
import os, signal, sys
from pathlib import Path
from heretic import durable, publish

calls, point = [0], int(sys.argv[2])

def counted(function):
    def call(*arguments, **named):
        calls[0] += 1
        if calls[0] == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call

for name in ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "chmod"):
    setattr(os, name, counted(getattr(os, name)))
publish.exchange = counted(publish.exchange)
if sys.argv[3] == "plain":
    publish.exchange = lambda first, second: False
target = Path(sys.argv[1])
with publish.staged_folder(target, overwrite=True) as staging:
    for number in range(3):
        (staging.path / f"part{number}").write_bytes(b"new" * 1000)
    if sys.argv[3] == "in-place":
        for number in range(3):
            descriptor = os.open(target / f"part{number}", os.O_WRONLY | os.O_TRUNC)
            os.write(descriptor, b"new" * 1000)
            os.close(descriptor)
    staging.commit()
print(calls[0])
"""


def make_output(target: Path, word: bytes = b"old") -> None:
    """A published folder of three files."""
    with staged_folder(target, overwrite=True) as staging:
        for number in range(3):
            (staging.path / f"part{number}").write_bytes(word * 1000)
        staging.commit()


def content(target: Path) -> set[bytes]:
    """The words the three files are made of; empty when the folder is absent."""
    if not target.exists():
        return set()
    assert verify_checksums(target) == []
    return {(target / f"part{number}").read_bytes()[:3] for number in range(3)}


def run_child(target: Path, point: int, mode: str) -> subprocess.CompletedProcess[str]:
    """One publish in a process that kills itself before its `point`-th system call."""
    command = [sys.executable, "-c", CHILD, str(target), str(point), mode]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def crash_points(target: Path, mode: str, tries: int) -> list[int]:
    """Evenly spread points, the last ones all: that is where the names change."""
    done = run_child(target, 0, mode)
    assert done.returncode == 0, done.stderr
    total = int(done.stdout)
    spread = {round(1 + part * (total - 1) / (tries - 1)) for part in range(tries)}
    return sorted(spread | set(range(max(total - 6, 1), total + 1)))


@pytest.mark.parametrize("mode", ["exchange", "plain"])
def test_a_kill_during_overwrite_leaves_old_or_new(tmp_path: Path, mode: str) -> None:
    """REL-B02: never a mixture; the next save recovers and leaves nothing beside the output."""
    for point in crash_points(tmp_path / "count", mode, 8):
        target = tmp_path / f"out{point}"
        make_output(target)
        assert run_child(target, point, mode).returncode == -signal.SIGKILL
        seen = content(target)
        assert seen in ({b"old"}, {b"new"}) or (mode == "plain" and not seen), f"point {point}: {seen}"
        if (
            not seen
        ):  # between the two renames of the non-atomic way: the old folder waits under its backup name
            publish._restore_backup(target)
            assert content(target) == {b"old"}
        make_output(target, b"two")
        assert content(target) == {b"two"}
        left = {path.name for path in tmp_path.iterdir() if path.name.startswith(f"{target.name}.")}
        assert all(".bak-" in name for name in left), left


def test_a_kill_during_a_fresh_save_leaves_nothing_or_all(tmp_path: Path) -> None:
    """REL-B01."""
    for point in crash_points(tmp_path / "count", "exchange", 8):
        target = tmp_path / f"fresh{point}"
        assert run_child(target, point, "exchange").returncode == -signal.SIGKILL
        assert content(target) in (set(), {b"new"})


def test_control_writing_in_place_is_seen_as_a_mixture(tmp_path: Path) -> None:
    """The harness must be able to fail: an in-place writer leaves old and new side by side (REL-T10)."""
    mixed = False
    for point in range(20, 34):
        target = tmp_path / f"bad{point}"
        make_output(target)
        run_child(target, point, "in-place")
        words = {(target / f"part{number}").read_bytes()[:3] for number in range(3)}
        mixed = mixed or words not in ({b"old"}, {b"new"}) or bool(verify_checksums(target))
    assert mixed


def test_existing_outputs_are_refused_and_foreign_folders_never_replaced(tmp_path: Path) -> None:
    """R-CLI-47."""
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    make_output(ours)
    with pytest.raises(OutputExistsError, match="exists"), staged_folder(ours):
        pass
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match="not written by this program"):
        make_output(foreign)
    assert (foreign / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match="not a folder"):
        make_output(tmp_path / "file")
    assert content(ours) == {b"old"}


def test_leaving_without_commit_or_with_an_error_publishes_nothing(tmp_path: Path) -> None:
    """R-OUT-03: a failed save leaves nothing that looks complete, and no staging."""
    with staged_folder(tmp_path / "out") as staging:
        (staging.path / "a").write_text("a")
    with pytest.raises(KeyError), staged_folder(tmp_path / "out") as staging:
        (staging.path / "a").write_text("a")
        raise KeyError("stop")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_not_published(tmp_path: Path) -> None:
    """REL-B10, and links cannot smuggle other files into an output."""
    with (
        pytest.raises(FileOperationError, match="Nothing was written"),
        staged_folder(tmp_path / "a") as staging,
    ):
        staging.commit()
    with pytest.raises(FileOperationError, match="link"), staged_folder(tmp_path / "a") as staging:
        (staging.path / "link").symlink_to("/etc/hostname")
        staging.commit()
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_writes_a_target(tmp_path: Path) -> None:
    """The staging is under a kernel lock; a second writer is told so, and the first is not disturbed."""
    with staged_folder(tmp_path / "out") as staging:
        (staging.path / "a").write_text("a")
        with pytest.raises(OutputExistsError, match="Another process"):
            make_output(tmp_path / "out")
        staging.commit()
    assert (tmp_path / "out" / "a").read_text() == "a"


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    """REL-B06: a library that writes with mode 0600 does not make the output unreadable for others."""
    before = os.umask(0o027)
    try:
        with staged_folder(tmp_path / "out") as staging:
            (staging.path / "sub").mkdir(mode=0o700)
            (staging.path / "sub" / "a").touch(mode=0o600)
            staging.commit()
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "sub" / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "out" / "sub").stat().st_mode & 0o777 == 0o750


FULL = """
import resource, sys
from pathlib import Path
from heretic.exceptions import DiskSpaceError
from heretic.publish import staged_folder, write_file
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if sys.argv[3] == "file":
        write_file(Path(sys.argv[1]), b"new" * 2000)
    else:
        with staged_folder(Path(sys.argv[1]), overwrite=True) as staging:
            for number in range(3):
                (staging.path / f"part{number}").write_bytes(b"new" * (1000 * (number + 1)))
            staging.commit()
except DiskSpaceError:
    sys.exit(28)
"""


@pytest.mark.parametrize("limit", [0, 100, 3000, 6500, 8999])
def test_a_write_that_the_system_refuses_keeps_the_old_output(tmp_path: Path, limit: int) -> None:
    """REL-03 by a real limit of the kernel: typed error, old output intact, nothing left, then success."""
    target = tmp_path / "out"
    make_output(target)
    command = [sys.executable, "-c", FULL, str(target), str(limit), "folder"]
    assert subprocess.run(command, check=False).returncode == 28
    assert content(target) == {b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    make_output(target, b"new")
    assert content(target) == {b"new"}


def test_a_full_disk_is_named_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REL-B03, REL-B04, X01: bytes needed and free; a library's own error counts when the disk is full."""
    with pytest.raises(DiskSpaceError, match="bytes are needed") as caught:
        require_space(tmp_path / "deep" / "out", 1 << 60)
    assert caught.value.data["needed"] == 1 << 60
    with pytest.raises(DiskSpaceError), staged_folder(tmp_path / "out", needed_bytes=1 << 60):
        pass
    with pytest.raises(DiskSpaceError), staged_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "out"):
        raise RuntimeError("control: enough space, so the library's error stays what it is")
    monkeypatch.setattr(publish, "free_bytes", lambda path: 0)
    with pytest.raises(DiskSpaceError), staged_folder(tmp_path / "out"):
        raise RuntimeError("Error while serializing: I/O error")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("pages", [1, 4, 8])
def test_a_really_full_disk(tmp_path: Path, pages: int) -> None:
    """REL-03 on a small tmpfs: the old output is intact, and the same save succeeds with more space."""
    mount = tmp_path / "disk"
    mount.mkdir()
    size = f"size={4 * (pages + 6)}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", mount], check=False).returncode:
        pytest.skip("this system does not allow a tmpfs")
    try:
        make_output(mount / "out")
        with pytest.raises(DiskSpaceError), staged_folder(mount / "out", overwrite=True) as staging:
            (staging.path / "big").write_bytes(b"new" * 20000)
            staging.commit()
        assert content(mount / "out") == {b"old"}
        assert [path.name for path in mount.iterdir()] == ["out"]
    finally:
        subprocess.run(["umount", mount], check=True)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """REL-05: 200 random single-bit flips. Control: the size alone sees none of them."""
    make_output(tmp_path / "out")
    generator = random.Random(5)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    for _ in range(200):
        path = tmp_path / "out" / generator.choice(names)
        data = bytearray(path.read_bytes())
        sound = bytes(data)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        assert verify_checksums(tmp_path / "out"), path.name
        assert len(data) == len(sound)
        path.write_bytes(sound)
    assert verify_checksums(tmp_path / "out") == []


def test_the_checksum_list_is_complete_and_standard(tmp_path: Path) -> None:
    """R-FMT-02: `sha256sum -c` reads it; a missing, an added and an unlisted path are problems."""
    make_output(tmp_path / "out")
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True, check=False
    )
    assert done.returncode == 0
    (tmp_path / "out" / "part0").rename(tmp_path / "out" / "extra")
    problems = verify_checksums(tmp_path / "out")
    assert any("part0" in problem for problem in problems)
    assert any("extra" in problem for problem in problems)
    listing = tmp_path / "out" / "SHA256SUMS"
    listing.write_text(f"{'0' * 64}  ../../etc/passwd\n")
    assert "malformed" in verify_checksums(tmp_path / "out")[0]
    listing.unlink()
    assert "incomplete" in verify_checksums(tmp_path / "out")[0]


def test_staged_checksums_equal_those_of_the_folder(tmp_path: Path) -> None:
    """The cached digests that the manifest uses are those of the files, also after a file changed."""
    with staged_folder(tmp_path / "out") as staging:
        (staging.path / "a").write_text("one")
        first = staging.checksums()
        (staging.path / "a").write_text("two!")
        assert staging.checksums() != first
        assert staging.checksums() == checksums(staging.path)


def test_one_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """`write_file`: old content until the rename; private files are readable by their owner only."""
    path = tmp_path / "folder" / "history.json"
    write_file(path, b"one")
    (tmp_path / "folder" / "history.json.partial").write_bytes(
        b"leftover of a killed writer, longer than the text"
    )
    write_file(path, b"two", private=True)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    command = [sys.executable, "-c", FULL, str(path), "100", "file"]
    assert subprocess.run(command, check=False).returncode == 28
    assert path.read_bytes() == b"two"
    assert [item.name for item in path.parent.iterdir()] == ["history.json"]


def test_the_exchange_swaps_two_folders(tmp_path: Path) -> None:
    """The atomic exchange really exchanges; where it cannot, it says so and changes nothing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").touch()
    swapped = durable.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "x").exists() is swapped
    with pytest.raises(FileNotFoundError):
        durable.exchange(tmp_path / "a", tmp_path / "missing")


def test_a_link_as_target_is_followed(tmp_path: Path) -> None:
    """The folder behind a link is replaced on its own file system; the link stays."""
    make_output(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_output(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {b"new"}
    assert isinstance(staged_folder(tmp_path / "link"), StagedFolder)
