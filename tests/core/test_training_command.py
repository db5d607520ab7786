"""surf_core.training says in one line what does not fit, and what to do."""

import re
import shutil

import pytest
from surf.surf_core.tiny.model import VAE
from surf.surf_core.training import __main__ as command
from surf.surf_core.training.data import Shards
from surf.surf_core.training.prepare.manifest import Folder
from surf.surf_core.training.tiny.clips import write_clips

from . import prepared


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_clips(folder / "v", 12, seed=1)
    prepared.run(folder / "v", folder / "out")
    return folder / "out"


@pytest.fixture
def data(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "data")


def no_data(data):
    shutil.rmtree(data)


def no_manifest(data):
    (data / "manifest.parquet").unlink()


def broken_manifest(data):
    (data / "manifest.parquet").write_bytes(b"PAR1")


def broken_options(data):
    (data / "options.json").write_text("{")


def broken_shards(data):
    for key in Shards(data).buckets():
        Folder(data).shard(key).write_bytes(b"")


def no_shards(data):
    shutil.rmtree(data / "clips")


BAD = [
    (
        no_data,
        "manifest.parquet, got no such file; prepare the folder with surf_core.training.prepare",
    ),
    (no_manifest, "got no such file; prepare the folder with surf_core.training.prepare"),
    (broken_manifest, "is damaged: .* write it anew with surf_core.training.prepare --assemble"),
    (broken_options, "options.json.* is damaged"),
    (broken_shards, "got other bytes; run surf_core.training.prepare again as before"),
    (no_shards, "got no such file; run surf_core.training.prepare again as before"),
]


def said(capsys, *argv):
    """What the command prints to stderr; one line, and 2."""
    assert command.main([str(one) for one in argv]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("surf_core.training: expected ")
    assert printed.count("\n") == 1
    assert len(printed) < 2000
    return printed


@pytest.mark.parametrize(("damage", "words"), BAD, ids=[bad.__name__ for bad, _ in BAD])
def test_data_that_cannot_be_trained_on(damage, words, data, tmp_path, capsys):
    damage(data)
    printed = said(capsys, "mask", "--data", data, "--out", tmp_path / "run")
    assert re.search(words, printed), printed


def test_weights_that_do_not_fit(data, tmp_path, capsys):
    (tmp_path / "words").write_text("no tensors")
    for path, words in (
        (tmp_path / "none", "found nothing; restore the file, or download it"),
        (tmp_path / "words", "is not one"),
        (VAE, "keys do not fit"),
        (tmp_path, "is no file"),
    ):
        given = ("tiny", "--data", data, "--out", tmp_path / "run", "--weights", path)
        assert words in said(capsys, *given)


def test_folders_that_are_not_named(data, tmp_path, capsys):
    assert "expected --data, got none" in said(capsys, "mask", "--out", tmp_path)
    assert "expected --out, got none" in said(capsys, "mask", "--data", data)


def test_a_recipe_without_a_dry_run(capsys):
    assert "expected a refiner's recipe for a dry run" in said(capsys, "mask", "--dry-run")


def test_what_stops_a_run_is_a_line_too(data, tmp_path, capsys, monkeypatch):
    def stopping(error):
        def run(*_, **__):
            raise error

        return run

    for error in (OSError(28, "expected to write", "x"), FloatingPointError("expected a loss")):
        monkeypatch.setattr(command, "run", stopping(error))
        assert command.main(["mask", "--data", str(data), "--out", str(tmp_path / "run")]) == 1
        assert capsys.readouterr().err.startswith("surf_core.training: stopped: ")


def test_whose_folders_may_be_gone_on_in_stands_beside_the_command():
    assert "Go on in folders of your own only" in " ".join(command.parser().format_help().split())
