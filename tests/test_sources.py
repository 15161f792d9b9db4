"""Archives, the cache, and what happens when they are damaged."""

import io
import pickle
import tarfile
import tempfile

import numpy as np
import pytest
from PIL import Image

from cvlab import data as cvdata
from cvlab import sources


@pytest.fixture
def pickles(tmp_path, tiny_images, monkeypatch):
    """The extracted folder with 50 + 20 images, published as such; (folder, images of batch 1)."""
    folder, files = tmp_path / "cifar-10-batches-py", {}
    folder.mkdir()
    for i, part in enumerate([*[f"data_batch_{i}" for i in range(1, 6)], "test_batch"]):
        images, labels = tiny_images(10 if i < 5 else 20, 10, seed=i)
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        files[part] = {"data": rows, "labels": labels.tolist()}
    files["batches.meta"] = {"label_names": sources.class_names("cifar10")}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    *batches, test, meta = ([name, sources.checksum(folder / name, "md5")] for name in files)
    original = sources._torchvisions("cifar10")
    monkeypatch.setattr(original, "train_list", batches)
    monkeypatch.setattr(original, "test_list", [test])
    monkeypatch.setattr(original, "meta", original.meta | {"md5": meta[1]})
    return tmp_path, tiny_images(10, 10, seed=0)[0]


def as_archive(folder, at):
    """The original `.tar.gz` of the extracted folder in `folder`."""
    at.mkdir()
    with tarfile.open(at / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    return at / "cifar-10-python.tar.gz"


@pytest.fixture
def class_folders(tmp_path, tiny_images):
    """A class-folder archive with two classes of the three that it lists, 10 + 4 images."""
    path = tmp_path / "cifar10.tgz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "cifar10/labels.txt", b"ship\nfrog\ncat\n")
        for part, n in (("train", 10), ("test", 4)):
            for i, (image, label) in enumerate(zip(*tiny_images(n, 2), strict=True)):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "PNG")
                add(tar, f"cifar10/{part}/{['ship', 'cat'][label]}/{i}.png", buffer.getvalue())
    return path


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_the_extracted_folder_is_read_pixel_for_pixel(pickles):
    folder, first = pickles
    data = sources.read("cifar10", folder)
    assert np.array_equal(data.train[0][:10], first)
    assert data.train[0].shape == (50, 32, 32, 3)
    assert data.train[1].dtype == np.int64
    assert data.test[1].tolist() == [i % 10 for i in range(20)]
    assert data.classes[3] == "cat"


def test_the_archive_is_read_from_a_read_only_folder_and_leaves_nothing(
    pickles, monkeypatch, tmp_path
):
    folder, first = pickles
    archive = as_archive(folder, tmp_path / "elsewhere")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(sources, "project_root", lambda: tmp_path / "project")
    archive.parent.chmod(0o555)
    try:
        data = sources.read("cifar10", archive.parent)
    finally:
        archive.parent.chmod(0o755)
    assert np.array_equal(data.train[0][:10], first)
    assert data.source == archive.name
    assert list(archive.parent.iterdir()) == [archive]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_half_an_archive_is_named_with_the_cure(pickles, tmp_path, keep):
    archive = as_archive(pickles[0], tmp_path / "elsewhere")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(sources.DataError, match=r"python\.tar\.gz cannot be read.*Copy it again"):
        sources.read("cifar10", archive.parent)


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_file_that_is_not_the_published_one_is_refused_unread(pickles, tmp_path, file, packed):
    """It may be damaged, or a pickle that runs code: its MD5 is wrong either way."""
    folder = pickles[0]
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return ran.touch, ()

    (folder / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Evil()))
    if packed:
        folder = as_archive(folder, tmp_path / "elsewhere").parent
    with pytest.raises(sources.DataError, match=r"cifar-10-.* cannot be read: .* MD5\."):
        sources.read("cifar10", folder)
    assert not ran.exists()


def test_class_folders_are_read_with_labels_in_the_order_of_labels_txt(class_folders, tiny_images):
    data = sources.read("cifar10", class_folders.parent)
    assert data.classes == ["ship", "cat"]
    assert np.array_equal(data.train[0], tiny_images(10, 2)[0])
    assert data.train[1].tolist() == [0, 1] * 5


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_named_with_the_cure(class_folders, keep):
    content = class_folders.read_bytes()
    class_folders.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(sources.DataError, match=r"cifar10\.tgz cannot be read.*Copy it again"):
        sources.read("cifar10", class_folders.parent)


def test_the_cache_is_used_and_a_damaged_one_is_named_and_rebuilt(class_folders, monkeypatch):
    folder = class_folders.parent
    fresh = sources.read("cifar10", folder)
    (cache,) = folder.glob("*.npz")
    monkeypatch.setattr(sources, "_read_pictures", lambda path: pytest.fail("not cached"))
    assert np.array_equal(sources.read("cifar10", folder).train[0], fresh.train[0])
    monkeypatch.undo()

    cache.write_bytes(cache.read_bytes()[: cache.stat().st_size // 2])
    with pytest.warns(UserWarning, match=cache.name):
        again = sources.read("cifar10", folder)
    assert np.array_equal(again.train[0], fresh.train[0])
    assert sources.read_cache(cache) is not None


def test_one_changed_byte_in_the_cache_is_noticed(class_folders):
    sources.read("cifar10", class_folders.parent)
    (cache,) = class_folders.parent.glob("*.npz")
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert sources.read_cache(cache) is None


def test_another_archive_gets_another_cache(class_folders):
    before = sources.cache_files("cifar10", class_folders.parent, class_folders)
    class_folders.write_bytes(class_folders.read_bytes() + b"\0")
    assert sources.cache_files("cifar10", class_folders.parent, class_folders) != before


def test_a_read_only_folder_is_left_alone(class_folders, monkeypatch, tmp_path):
    folder, own = class_folders.parent, tmp_path / "project"
    monkeypatch.setattr(sources, "project_root", lambda: own)
    folder.chmod(0o555)
    try:
        sources.read("cifar10", folder)
        assert not list(folder.glob("*.npz"))
        assert len(list((own / "data").glob("cifar10-*.npz"))) == 1
    finally:
        folder.chmod(0o755)


def test_a_full_disk_costs_the_cache_and_nothing_else(class_folders, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources.np, "savez", full)
    with pytest.warns(UserWarning, match="No space left"):
        data = sources.read("cifar10", class_folders.parent)
    assert len(data.train[0]) == 10
    assert not list(class_folders.parent.glob("*.tmp"))


def test_without_anything_on_disk_and_no_download_there_is_nothing(tmp_path):
    assert sources.read("cifar10", tmp_path, allow_download=False) is None
    assert not cvdata.load("cifar10", str(tmp_path), allow_download=False, n_test=10).real


def test_where_nothing_was_ever_put_nothing_is_found(tmp_path):
    assert sources.find("cifar10", tmp_path / "data") is None


def test_a_folder_that_is_not_there_is_an_error_not_a_stand_in(tmp_path):
    """A typo in CVLAB_DATA must not end in numbers from drawings."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cvdata.load("cifar10", str(tmp_path / "nowhere"))
