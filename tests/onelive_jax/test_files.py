"""Files written whole, and what is told of a disk that takes none."""

import errno
import os

import polars as pl
import pytest

from onelive_jax import files


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "W/x"), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    OSError(errno.EFBIG, os.strerror(errno.EFBIG)), pl.exceptions.ComputeError("File too large (os error 27)"),
    RuntimeError("RESOURCE_EXHAUSTED: No space left on device")])
def test_a_full_disk_of_any_library_is_a_sentence(error):
    assert files.TOLD in files.disk_trouble(error)


def test_a_sentence_is_not_explained_twice(tmp_path):
    with pytest.raises(OSError, match="x could not be written") as error, files.explain_full_disk(tmp_path, "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert files.disk_trouble(error.value).startswith("No space left on device: x could not be written to ")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_read_only_disk_is_a_sentence(code):
    said = files.disk_trouble(OSError(code, os.strerror(code), "W/supervised"))
    assert said == (f"W/supervised cannot be opened or written: {os.strerror(code)}. Choose another folder, or correct "
                    "its permissions")


def test_other_errors_are_none_of_the_disk():
    assert files.disk_trouble(ValueError("a row is wrong")) is None
    assert files.disk_trouble(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x")) is None


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a" / "x.json"
    files.write_json(file, {"a": 1})

    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(file), "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: x.json could not be written to .* MiB are free"):
        files.write_json(file, {"a": 2})
    assert file.read_text() == '{\n "a": 1\n}'


def test_control_characters_are_shown_as_text():
    assert files.printable("a\x1b[31mb\u202ec\n主播 👩\u200d🚀") == "a\\x1b[31mb\\u202ec\n主播 👩\u200d🚀"
    assert files.printable("a\nb\tc", "") == "a\\nb\\tc"
