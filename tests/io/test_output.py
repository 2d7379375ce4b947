import os

import pytest

from chimap.errors import InputError
from chimap.io.output import whole_directory, whole_file


def test_a_new_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "er" / "out"
    with whole_directory(target) as folder:
        (folder / "chi.nii.gz").write_text("chi")
        assert not target.exists()
    assert (target / "chi.nii.gz").read_text() == "chi"
    assert os.listdir(target.parent) == ["out"]
    assert target.stat().st_mode & 0o700 == 0o700


def test_an_existing_folder_keeps_its_other_files(tmp_path):
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "figures" / "old.png").write_text("old")
    (tmp_path / "out" / "chi.nii.gz").write_text("old")
    with whole_directory(tmp_path / "out") as folder:
        (folder / "chi.nii.gz").write_text("new")
        (folder / "figures").mkdir()
        (folder / "figures" / "new.png").write_text("new")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "chi.nii.gz").read_text() == "new"
    assert sorted(os.listdir(tmp_path / "out" / "figures")) == ["new.png", "old.png"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_belongs_to_results_before_goes_once_the_new_ones_stand(tmp_path):
    out = tmp_path / "out"
    (out / "dicom").mkdir(parents=True)
    (out / "kept").mkdir()
    for name in ("chi", "swi", "mine", "dicom/1", "dicom/2", "kept/old", "kept/mine"):
        (out / name).write_text("old")
    earlier = ["chi", "swi", "dicom/1", "dicom/2", "kept/old", "gone before"]
    with pytest.raises(RuntimeError), whole_directory(out, earlier=earlier) as folder:
        (folder / "chi").write_text("half")
        raise RuntimeError
    assert (out / "swi").exists() and (out / "chi").read_text() == "old"
    with whole_directory(out, earlier=earlier) as folder:
        (folder / "chi").write_text("new")
        assert (out / "swi").exists()  # until the new ones are whole
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == ["chi", "kept", "kept/mine", "mine"]
    assert (out / "chi").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_remains_after_an_error_or_an_interrupt(tmp_path, error):
    with pytest.raises(error), whole_directory(tmp_path / "deep" / "out") as folder:
        (folder / "chi.nii.gz").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []
    with pytest.raises(error), whole_file(tmp_path / "deep" / "chi.nii.gz") as file:
        file.write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_an_existing_target_is_untouched_after_an_error(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "chi.nii.gz").write_text("old")
    with pytest.raises(RuntimeError), whole_directory(tmp_path / "out") as folder:
        (folder / "chi.nii.gz").write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), whole_file(tmp_path / "out" / "chi.nii.gz") as file:
        file.write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "chi.nii.gz").read_text() == "old"
    assert os.listdir(tmp_path / "out") == ["chi.nii.gz"]


def test_a_file_keeps_its_suffixes_while_it_is_written(tmp_path):
    with whole_file(tmp_path / "new" / "chi.nii.gz") as file:
        assert file.name.endswith("chi.nii.gz") and file.parent == tmp_path / "new"
        file.write_text("chi")
    assert (tmp_path / "new" / "chi.nii.gz").read_text() == "chi"
    assert os.listdir(tmp_path / "new") == ["chi.nii.gz"]


def test_targets_of_the_wrong_kind_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"), whole_directory(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match="is a file"), whole_directory(tmp_path / "file" / "out"):
        pass
    with pytest.raises(InputError, match="is a folder"), whole_file(tmp_path):
        pass
    (tmp_path / "out" / "chi.nii.gz").mkdir(parents=True)
    (tmp_path / "out" / "other").write_text("old")
    with (
        pytest.raises(InputError, match="is a folder, and a file"),
        whole_directory(tmp_path / "out") as folder,
    ):
        (folder / "chi.nii.gz").write_text("new")
        (folder / "other").write_text("new")
    assert (tmp_path / "out" / "other").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "out"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="an administrator may write anywhere")
def test_places_without_permission_are_refused(tmp_path):
    tmp_path.chmod(0o500)
    for context in (whole_directory(tmp_path / "out"), whole_file(tmp_path / "chi.nii")):
        with pytest.raises(InputError, match="cannot write"), context:
            pass
