"""Fetch one known file from the first mirror that delivers it: verified, resumable, never crawling.

The mirrors of a dataset are byte-identical, so a part fetched from one is continued at the next,
and the checksum of the whole decides. A mirror that is slower than a floor is left for the next;
if all of them are, the last round takes what there is, without a floor.
"""

import hashlib
import time
import urllib.error
import urllib.request
from pathlib import Path

from cvlab.progress import progress

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
