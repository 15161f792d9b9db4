"""The downloader against real servers on the loopback address: broken, hanging, crawling."""

import contextlib
import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cvlab import sources
from cvlab.sources import DownloadError, download

CONTENT = bytes(range(256)) * 4000  # 1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Mirror(BaseHTTPRequestHandler):
    """Serves CONTENT with the fault that the path names, honours Range, notes what was asked."""

    def do_GET(self):
        fault = self.path.strip("/")
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.asked.append((fault, start))
        if fault == "missing":
            return self.send_error(404)
        if fault == "hangs":
            return time.sleep(60)
        content = CONTENT[:-1] + b"x" if fault == "wrong" else CONTENT
        if fault == "norange":
            start = 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has left, as it should
            self.send_body(fault, content[start:])

    def send_body(self, fault, rest):
        if fault == "cut":
            self.wfile.write(rest[: len(rest) // 2])
        elif fault == "crawls":
            for i in range(0, len(rest), 1000):
                self.wfile.write(rest[i : i + 1000])
                time.sleep(0.02)
        else:
            self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror():
    """A function fault -> URL; `mirror.asked` lists (fault, first byte) of every request."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.daemon_threads, server.asked = True, []
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def url(fault):
        return f"http://127.0.0.1:{server.server_port}/{fault}"

    url.asked = server.asked
    yield url
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    for name, value in {"FLOOR": 0, "TIMEOUT": 0.7, "WINDOW": 0.3}.items():
        monkeypatch.setattr(sources, name, value)


def fetch(mirror, target, *faults):
    return download([mirror(fault) for fault in faults], target, MD5)


def test_a_good_mirror_delivers(mirror, tmp_path):
    path = fetch(mirror, tmp_path / "new" / "file.bin", "good")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("fault", ["missing", "wrong", "hangs", "cut"])
def test_a_bad_mirror_is_left_for_the_next(mirror, tmp_path, fault):
    start = time.monotonic()
    assert fetch(mirror, tmp_path / "f", fault, "good").read_bytes() == CONTENT
    assert time.monotonic() - start < 30


def test_a_crawling_mirror_is_abandoned_and_its_part_continued(mirror, tmp_path, monkeypatch):
    """50 kB/s against a floor of 500: the second mirror must begin where the first was left."""
    monkeypatch.setattr(sources, "FLOOR", 500_000)
    start = time.monotonic()
    path = fetch(mirror, tmp_path / "f", "crawls", "good")
    assert path.read_bytes() == CONTENT
    assert time.monotonic() - start < 5
    assert mirror.asked[1][0] == "good"
    assert mirror.asked[1][1] > 0


def test_when_all_mirrors_crawl_the_file_arrives_all_the_same(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FLOOR", 5e6)
    monkeypatch.setattr(sources, "WINDOW", 0.1)
    path = tmp_path / "f"
    path.with_name("f.part").write_bytes(CONTENT[:-30_000])
    assert fetch(mirror, path, "crawls").read_bytes() == CONTENT


def test_a_second_call_continues_the_first(mirror, tmp_path):
    with pytest.raises(DownloadError, match="cut off"):
        fetch(mirror, tmp_path / "f", "cut")
    assert fetch(mirror, tmp_path / "f", "good").read_bytes() == CONTENT
    assert mirror.asked[-1] == ("good", len(CONTENT) // 2)


def test_a_mirror_without_range_starts_anew(mirror, tmp_path):
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    assert fetch(mirror, tmp_path / "f", "norange").read_bytes() == CONTENT


def test_a_complete_part_is_recognised(mirror, tmp_path):
    """Killed between the last byte and the rename."""
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert fetch(mirror, tmp_path / "f", "good").read_bytes() == CONTENT


def test_when_nothing_works_every_answer_is_told(mirror, tmp_path):
    with pytest.raises(DownloadError) as error:
        fetch(mirror, tmp_path / "f", "missing", "wrong")
    assert "Not Found" in str(error.value)
    assert f"expected {MD5}" in str(error.value)
    assert "by hand" in str(error.value)


def test_no_internet_ends_in_a_warning_and_no_data(mirror, tmp_path, monkeypatch):
    """What a class run on a train meets; `load` then draws the stand-in."""
    monkeypatch.setitem(sources.MIRRORS, "cifar10", [mirror("missing")])
    with pytest.warns(UserWarning, match="could not be downloaded"):
        assert sources.read("cifar10", tmp_path) is None


def test_the_original_must_have_the_published_md5(mirror, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.MIRRORS, "cifar10", [mirror("good")])
    with pytest.warns(UserWarning, match="expected c58f30108f718f92721af3b95e74349a"):
        assert sources.fetch("cifar10", tmp_path) is None
    monkeypatch.setattr(sources._torchvisions("cifar10"), "tgz_md5", MD5)
    assert sources.fetch("cifar10", tmp_path).read_bytes() == CONTENT
