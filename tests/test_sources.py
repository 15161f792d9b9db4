"""Archives, the cache, and what happens when they are damaged."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from cvlab import data as cvdata
from cvlab import sources


@pytest.fixture
def pickles(tmp_path, tiny_images):
    """Torchvision's extracted folder with 50 + 20 images; returns (folder, images of batch 1)."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, part in enumerate([*[f"data_batch_{i}" for i in range(1, 6)], "test_batch"]):
        images, labels = tiny_images(10 if i < 5 else 20, 10, seed=i)
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        content = {b"data": rows, b"labels": labels.tolist()}
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
    names = [name.encode() for name in sources.class_names("cifar10")]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return tmp_path, tiny_images(10, 10, seed=0)[0]


@pytest.fixture
def class_folders(tmp_path, tiny_images):
    """A class-folder archive with two classes, 10 + 4 images."""
    path = tmp_path / "cifar10.tgz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "cifar10/labels.txt", b"ship\ncat\n")
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


def test_pickles_are_read_pixel_for_pixel(pickles):
    folder, first = pickles
    data = sources.read("cifar10", folder)
    assert np.array_equal(data.train[0][:10], first)
    assert data.test[1].tolist() == [i % 10 for i in range(20)]
    assert data.classes[3] == "cat"


def test_tar_gz_is_read_and_its_md5_checked(pickles, monkeypatch, tmp_path):
    folder, first = pickles
    archive = tmp_path / "elsewhere" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    with pytest.raises(sources.DataError, match="MD5"):
        sources.read("cifar10", archive.parent)
    origin = list(sources.ORIGINALS["cifar10"])
    origin[1] = sources.checksum(archive)
    monkeypatch.setitem(sources.ORIGINALS, "cifar10", tuple(origin))
    assert np.array_equal(sources.read("cifar10", archive.parent).train[0][:10], first)


def test_class_folders_are_read_with_labels_in_the_order_of_labels_txt(class_folders, tiny_images):
    data = sources.read("cifar10", class_folders.parent)
    assert data.classes == ["ship", "cat"]
    assert np.array_equal(data.train[0], tiny_images(10, 2)[0])
    assert data.train[1].tolist() == [0, 1] * 5


def test_a_pickle_that_would_run_code_is_refused(pickles):
    folder, _ = pickles

    class Evil:
        def __reduce__(self):
            return print, ("run",)

    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(sources.DataError, match=r"print"):
        sources.read("cifar10", folder)


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
    monkeypatch.setattr(sources, "_read_folder_archive", lambda path: pytest.fail("not cached"))
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


def test_a_folder_that_is_not_there_is_an_error_not_a_stand_in(tmp_path):
    """A typo in CVLAB_DATA must not end in numbers from drawings."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cvdata.load("cifar10", str(tmp_path / "nowhere"))
