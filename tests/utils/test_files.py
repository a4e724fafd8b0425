"""Files are whole, and a file that cannot be written is named with the reason and a remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sam4ir.errors import FileError, UserError
from sam4ir.utils.files import (
    AppendedFile,
    append_text,
    atomic,
    encode_text,
    make_folder,
    read_text,
    write_error,
    write_text,
)

REMEDIES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space of your quota",
    errno.EFBIG: "ulimit -f",
    errno.EROFS: "choose a folder that you may write",
    errno.EACCES: "choose a folder that you may write",
    errno.ENOENT: "moved or removed",
    errno.EIO: "look at its disk",
}


LIMIT = 1000  # bytes


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Limit the size of files. No fixture: pytest writes its report, which may go to a file, between those."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("number", REMEDIES)
def test_the_message_names_file_reason_and_remedy(number: int, tmp_path: Path) -> None:
    text = str(write_error(tmp_path / "a.txt", OSError(number, os.strerror(number))))
    assert text.startswith(f"{tmp_path / 'a.txt'}: cannot be written ({os.strerror(number)}")
    assert REMEDIES[number] in text


def test_a_library_without_error_numbers_gets_the_systems_words(tmp_path: Path) -> None:
    error = RuntimeError("mdb_txn_commit: No space left on device")
    assert write_error(tmp_path, error).errno == errno.ENOSPC


def test_a_whole_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with small_files(), pytest.raises(FileError, match=r"a\.txt: cannot be written .*ulimit -f"):
        write_text(path, "x" * 2 * LIMIT)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_appended_piece_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with small_files(), AppendedFile(path, "head\n") as file:
        file.write("a" * 900)
        with pytest.raises(FileError, match="log: cannot be written"):
            file.write("b" * 200)
        assert path.read_bytes() == b"head\n" + b"a" * 900
        file.write("c" * 10)
    assert path.read_bytes() == b"head\n" + b"a" * 900 + b"c" * 10


def test_an_appended_file_gets_its_head_once(tmp_path: Path) -> None:
    for text in ("1\n", "2\n"):
        with AppendedFile(tmp_path / "t", "head\n") as file:
            file.write(text)
    assert (tmp_path / "t").read_text() == "head\n1\n2\n"


def test_a_removed_file_begins_anew_and_a_moved_folder_is_an_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    file = AppendedFile(run / "t", "head\n")
    file.write("1\n")
    (run / "t").unlink()
    file.write("2\n")
    assert (run / "t").read_text() == "head\n2\n"
    run.rename(tmp_path / "away")
    with pytest.raises(FileError, match=r"run/t: cannot be written .* moved or removed"):
        file.write("3\n")
    run.mkdir()  # another folder of that name is not the run's
    with pytest.raises(FileError, match="moved or removed"):
        file.write("3\n")
    assert (tmp_path / "away" / "t").read_text() == "head\n2\n"
    file.close()


def test_a_folder_in_whose_place_a_file_lies_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    for path in (tmp_path / "out", tmp_path / "out" / "sub"):
        with pytest.raises(FileError, match=r"out is a file or a broken link, where a folder is needed"):
            make_folder(path)


@pytest.mark.parametrize("write", [write_text, append_text])
def test_a_file_where_a_folder_is_needed_is_named(write, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(FileError, match=r"out is a file or a broken link, where a folder is needed"):
        write(tmp_path / "out" / "sub" / "a.txt", "x")


def test_errors_about_other_files_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), atomic(tmp_path / "copy") as part:
        part.write_bytes((tmp_path / "source").read_bytes())
    with pytest.raises(ConnectionResetError), atomic(tmp_path / "copy"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_file_name_that_is_no_text_keeps_its_bytes() -> None:
    assert encode_text(os.fsdecode(b"caf\xe9")) == b"caf\xe9"
    assert encode_text("\ud800") == b"\\ud800"


STREAMS = """
import sys
from sam4ir.utils import cli

def main():
    for number in range(20000):
        print(number, "caf\\xe9 \\udce9")
    print("written", file=sys.stderr)
    open(sys.argv[1], "w").write("done")

sys.exit(cli.run(main, logged="logged" in sys.argv))
"""


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("{} | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", 1),
        ("{} logged | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", 0),
        ("{} 2>&1 | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", 1),
        ("{} >&-", 0),
        ("{} >&- 2>&-", 0),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {} > /dev/null", 0),
        ("PYTHONIOENCODING=ascii {} > /dev/null", 0),
        ("PYTHONUNBUFFERED=1 {} | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", 1),
        ("{} > /dev/full", 2),
    ],
)
def test_a_command_outlives_its_readers(shell: str, code: int, tmp_path: Path) -> None:
    script, mark = tmp_path / "script.py", tmp_path / "mark"
    script.write_text(STREAMS)
    line = shell.format(f"{sys.executable} {script} {mark}")
    done = subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if code == 2:
        assert done.stderr.startswith("error: standard output: cannot be written (No space left on device")
        assert done.stderr.count("\n") == 1
    else:
        assert mark.read_text() == "done"


def test_the_log_of_a_script_on_a_full_disk_is_one_message(tmp_path: Path) -> None:
    script = """
import logging
from sam4ir.utils import cli

def main():
    cli.show_log()
    logging.getLogger("sam4ir").info("a line")

raise SystemExit(cli.run(main))
"""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: cannot be written (No space left on device); free space")
    assert done.stderr.count("\n") == 1


def test_what_a_killed_process_left_of_a_file_goes_when_the_file_is_written_and_what_lives_stays(
    tmp_path: Path,
) -> None:
    target = tmp_path / "image.png"
    abandoned, of_another_file = tmp_path / ".image.png.1.part", tmp_path / ".image.png.more.1.part"
    abandoned.write_text("half")
    of_another_file.write_text("half")
    waiting = """
import sys
from pathlib import Path
from sam4ir.utils.files import atomic
with atomic(Path(sys.argv[1])) as part:
    print(part, flush=True)
    sys.stdin.read()
    part.write_text("theirs")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", waiting, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    theirs = Path(process.stdout.readline().strip())
    assert not abandoned.exists()
    abandoned.write_text("half")
    write_text(target, "ours")
    assert theirs.exists()
    assert not abandoned.exists()
    assert of_another_file.exists()
    process.communicate("")
    assert process.returncode == 0
    assert target.read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == [of_another_file.name, "image.png"]


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for place in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null"), Path("/dev/stdout")):
        with pytest.raises(FileError, match=r"is a pipe, socket or device, which a file would replace; name a file"):
            write_text(place, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()


def test_a_command_without_standard_input_reads_an_empty_one() -> None:
    code = "import sys; from sam4ir.utils import streams; streams.guard_streams(); print(len(sys.stdin.buffer.read()))"
    shell = ["sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, code]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout == "0\n"


def test_a_pipe_is_read_to_its_end_and_one_that_nobody_writes_to_is_named(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yml"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"pipe\.yml: is a pipe that nobody writes to; give a file"):
        read_text(pipe)
    text = "name: x\n" * 20_000  # more than a pipe holds at once
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    assert read_text(pipe) == text
    writer.join()
