import errno
import subprocess
import sys

import pytest

from seqattn.data.workplace import is_work, work_folder

HOLD = """
import os, signal, sys
from seqattn.data.workplace import work_folder
with work_folder(__import__("pathlib").Path(sys.argv[1])) as folder:
    (folder / "half").write_text("done")
    print(folder, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_work_folder_is_hidden_and_gone_at_the_end(tmp_path):
    with work_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert is_work(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
    with pytest.raises(KeyError), work_folder(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_work_and_that_of_a_live_one_stays(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    left = process.stdout.readline().strip()
    mine = tmp_path / "mine"
    mine.mkdir()
    with work_folder(tmp_path) as folder:
        assert {str(path) for path in tmp_path.iterdir()} == {left, str(mine), str(folder)}
    process.communicate("\n")
    assert {str(path) for path in tmp_path.iterdir()} == {left, str(mine)}
    with work_folder(tmp_path) as folder:
        assert set(tmp_path.iterdir()) == {mine, folder}


def test_a_full_disk_is_told_with_its_place(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, work_folder(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path)
