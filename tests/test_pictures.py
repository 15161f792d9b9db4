"""Pictures as people keep them: packed otherwise, deeper, turned, of 16 bits, or damaged."""

import io
import os
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvlab import data as cvdata
from cvlab import sources


@pytest.fixture
def tree(tmp_path, tiny_images):
    """Class folders "cifar10" with ship and cat, 10 + 4 pictures; (folder, training images)."""
    folder = tmp_path / "made" / "cifar10"
    for part, n in (("train", 10), ("test", 4)):
        for i, (image, label) in enumerate(zip(*tiny_images(n, 2), strict=True)):
            place = folder / part / ["ship", "cat"][label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i}.png")
    (folder / "labels.txt").write_text("ship frog cat")
    return folder


def by_value(images):
    return sorted(image.tobytes() for image in images)


def tar(folder, path, name):
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        archive.add(folder, name)


def packed_with_a_dot(tree, at):
    tar(tree, at / "cifar10.tar.gz", "./cifar10")


def packed_deeper(tree, at):
    tar(tree, at / "cifar10.tar", "home/ann/data/cifar10")


def zipped_on_a_mac(tree, at):
    (tree / "train" / "cat" / "._1.png").write_bytes(b"resource fork")
    (tree / ".DS_Store").write_bytes(b"finder")
    with zipfile.ZipFile(at / "cifar10.zip", "w") as archive:
        for file in (file for file in tree.rglob("*") if file.is_file()):
            archive.write(file, Path("cifar10") / file.relative_to(tree))
        archive.writestr("__MACOSX/cifar10/train/cat/._1.png", b"resource fork")


def a_folder(tree, at):
    shutil.copytree(tree, at / "cifar10")


def one_folder_deeper(tree, at):
    shutil.copytree(tree, at / "downloads" / "cifar10")


def named_otherwise(tree, at):
    for part in ("train", "test"):
        (tree / part / "cat").rename(tree / part / "Cat")
    (tree / "labels.txt").unlink()
    for file in tree.rglob("*.png"):
        file.rename(file.with_suffix(".PNG"))
    shutil.copytree(tree, at / "cifar10")


WAYS = [packed_with_a_dot, packed_deeper, zipped_on_a_mac, a_folder, one_folder_deeper]


@pytest.mark.parametrize("pack", [*WAYS, named_otherwise], ids=lambda pack: pack.__name__)
def test_archives_are_read_as_people_make_them(tree, tmp_path, pack, tiny_images):
    at = tmp_path / "at"
    at.mkdir()
    pack(tree, at)
    data = sources.read("cifar10", at, allow_download=False)
    assert data.classes == (["cat", "ship"] if pack is named_otherwise else ["ship", "cat"])
    assert by_value(data.train[0]) == by_value(tiny_images(10, 2)[0])
    assert np.bincount(data.test[1]).tolist() == [2, 2]


def test_the_folder_itself_may_be_named(tree):
    assert sources.find("cifar10", tree) == tree
    assert sources.find("cifar100", tree) is None


def test_a_validation_folder_joins_the_training_images(tree):
    shutil.copytree(tree / "test", tree / "val")
    assert len(sources.read("cifar10", tree.parent).train[0]) == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: shutil.rmtree(t / "test" / "cat"), r"no pictures in test/<class>/ of cat"),
        (lambda t: shutil.rmtree(t / "train" / "cat"), r"no pictures in train/<class>/ of cat"),
        (lambda t: shutil.rmtree(t / "train"), r"no pictures in train/<class>/"),
        (lambda t: (t / "labels.txt").write_text("ship"), r"labels.txt of .* does not list cat"),
        (lambda t: Image.new("RGB", (64, 28)).save(t / "test/cat/x.png"), r"x\.png is 64 x 28"),
        (lambda t: (t / "train/cat/x.jpg").write_bytes(b"no"), r"x\.jpg is no picture"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tree, change, message):
    change(tree)
    with pytest.raises(sources.DataError, match=message):
        sources.read("cifar10", tree.parent)


def test_a_named_folder_with_other_things_in_it_is_not_silently_the_stand_in(tmp_path):
    (tmp_path / "my photos").mkdir()
    with pytest.warns(UserWarning, match=r"holds my photos.*cifar10\.tgz"):
        assert not cvdata.load("cifar10", str(tmp_path), allow_download=False, n_test=10).real


def test_one_folders_images_are_never_anothers(tree, tmp_path):
    """The cache of a folder, or of an archive replaced by one of equal size, is its own."""
    first = sources.read("cifar10", tree.parent)
    other = shutil.copytree(tree.parent, tmp_path / "other")
    for cache in other.glob("*.npz"):
        cache.unlink()
    picture = other / "cifar10" / "train" / "cat" / "1.png"
    size = picture.stat().st_size
    Image.new("RGB", (32, 32), "red").save(picture)
    os.truncate(picture, size)  # equal in name and size
    second = sources.read("cifar10", other)
    assert by_value(first.train[0]) != by_value(second.train[0])
    caches = {
        sources.cache_files("cifar10", f, sources.find("cifar10", f))[0].name
        for f in (tree.parent, other)
    }
    assert len(caches) == 2


def test_a_changed_picture_gets_another_cache(tree):
    before = sources.cache_files("cifar10", tree.parent, tree)
    os.utime(tree / "train" / "cat" / "1.png", ns=(1, 1))
    assert sources.cache_files("cifar10", tree.parent, tree) != before


@pytest.mark.parametrize(
    "change",
    [
        {"test_labels": np.array([0, 99, 1, 0])},
        {"test_labels": np.array([0.0, 1.0, 0.0, 1.0])},
        {"test_labels": np.array([0, 1])},
        {"test_images": np.zeros((4, 28, 28, 3), np.uint8)},
        {"test_images": np.zeros((4, 32, 32, 3), np.float32)},
    ],
)
def test_a_cache_that_holds_nonsense_is_not_used(tree, change):
    sources.read("cifar10", tree.parent)
    (cache,) = tree.parent.glob("*.npz")
    with np.load(cache) as stored:
        content = {**stored} | change
    np.savez(cache, **content)
    with pytest.warns(UserWarning, match="damaged"):
        assert sources.read_cache(cache) is None


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def test_sixteen_bits_and_floats_keep_their_brightness():
    grey = np.linspace(0, 255, 32 * 32).reshape(32, 32)
    deep = Image.fromarray((grey * 257).astype(np.uint16))
    for file in (
        saved(deep, "PNG"),
        saved(deep, "TIFF"),
        saved(Image.fromarray((grey / 255).astype(np.float32)), "TIFF"),
        saved(Image.fromarray(grey.astype(np.float32)), "TIFF"),
    ):
        assert np.abs(sources.pixels(file)[..., 0] - grey).max() <= 1


def test_a_picture_is_turned_as_its_camera_says():
    image = Image.new("RGB", (32, 16))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert sources.pixels(saved(image, "JPEG", exif=exif)).shape == (32, 16, 3)


def test_half_a_picture_and_a_huge_one_are_refused(monkeypatch):
    whole = saved(Image.effect_noise((64, 64), 90), "JPEG").getvalue()
    with pytest.raises(ValueError, match="cut short"):
        sources.pixels(io.BytesIO(whole[: len(whole) // 2]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="larger"), warnings.catch_warnings():
        sources.pixels(io.BytesIO(whole))


def test_a_fingerprint_is_of_the_images_not_of_how_many_are_taken(tree):
    def fingerprint(**options):
        return cvdata.load("cifar10", str(tree.parent), **options).fingerprint

    before = fingerprint()
    assert fingerprint(n_train=4) == before
    Image.new("RGB", (32, 32), "red").save(tree / "train" / "cat" / "1.png")
    assert fingerprint() != before
