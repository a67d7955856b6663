"""Downloads against a host that fails in every way: a file is visible only when whole and verified."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import multiprocessing
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from test_data_idx import idx_bytes
from test_data_images import SET

from ppvae import data
from ppvae.data import download, images
from ppvae.data.download import Remote, fetched
from ppvae.errors import DataError, MissingFileError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Host:
    """A host whose answers to requests in order are ``plan``; when it is used up, the last goes on."""

    def __init__(self, files):
        self.files, self.plan, self.ranges = files, ["whole"], []
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                host.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        how = self.plan[min(len(self.ranges), len(self.plan) - 1)]
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        content, status, extra = self.files[request.path], 200, {}
        if how in ("500", "404", "416"):
            content, status = b"<html>sorry</html>", int(how)
        elif how == "wrong":
            content = bytes(len(content))
        elif how == "page":
            content = b"<html>log in first</html>"
        elif how == "endless":
            content = content + bytes(50_000_000)
        elif how == "other range":
            status, extra = 206, {"Content-Range": f"bytes 5-{len(content) - 1}/{len(content)}"}
        elif asked and how != "ignores ranges":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status, extra = 206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content = content[start:]
        request.send_response(status)
        for name, value in {**extra, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        cut = how.startswith("cut ")
        try:
            request.wfile.write(content[: int(how.split()[1])] if cut else content)
        except OSError:  # the other side has seen enough
            pass
        request.close_connection = True


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    found = Host({"/file": CONTENT})
    yield found
    found.server.shutdown()
    found.server.server_close()


def remote(host, **other):
    return Remote(**({"url": f"{host.url}/file", "size": len(CONTENT), "sha256": SHA256} | other))


def names(folder):
    """What a user sees: not the lock that a process leaves."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_fetched_once(host, tmp_path, capsys):
    path = tmp_path / "new" / "file.gz"
    assert fetched(remote(host), path).read_bytes() == CONTENT
    assert fetched(remote(host), path) == path
    assert host.ranges == [None]
    assert names(path.parent) == ["file.gz"]
    assert capsys.readouterr().err == f"downloading {host.url}/file (0.3 MB) to {path}\n"


@pytest.mark.parametrize(
    ("plan", "ranges"),
    [
        (["500", "500", "whole"], [None, None, None]),
        (["cut 100000", "cut 50000", "whole"], [None, "bytes=100000-", "bytes=150000-"]),
        (["cut 100000", "ignores ranges"], [None, "bytes=100000-"]),
        (["cut 100000", "other range", "whole"], [None, "bytes=100000-", None]),
        (["cut 100000", "416", "whole"], [None, "bytes=100000-", None]),
        (["wrong", "whole"], [None, None]),
        (["endless", "whole"], [None, None]),
    ],
    ids=["errors", "cut twice", "no ranges", "another range", "no such range", "wrong bytes", "too many bytes"],
)
def test_a_later_try_goes_on_where_that_is_sound(host, tmp_path, plan, ranges):
    host.plan = plan
    assert fetched(remote(host), tmp_path / "file").read_bytes() == CONTENT
    assert host.ranges == ranges
    assert names(tmp_path) == ["file"]


def test_wrong_bytes_are_told_with_address_and_both_hashes(host, tmp_path):
    host.plan = ["wrong"]
    with pytest.raises(DataError) as caught:
        fetched(remote(host), tmp_path / "file")
    assert str(caught.value) == (
        f"needed the file of SHA-256 {SHA256}, and 3 tries brought another; the last was {hashlib.sha256(bytes(300_000)).hexdigest()}\n"
        f"  where: {host.url}/file, for {tmp_path / 'file'}\n"
        "  mend:  fetch it by other means and put it there\n"
        "     or: look whether a proxy or a login page answers in the host's place"
    )
    assert len(host.ranges) == 3
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("how", "why", "left"),
    [
        ("500", "HTTP status 500 (Internal Server Error)", []),
        ("404", "HTTP status 404 (Not Found)", []),
        ("cut 0", "the connection ended after 0 of 300,000 bytes", ["file.partial"]),
        ("cut 100", "the connection ended after 300 of 300,000 bytes", ["file.partial"]),
    ],
)
def test_a_host_that_does_not_deliver_is_told_after_three_tries(host, tmp_path, how, why, left):
    host.plan = [how]
    with pytest.raises(MissingFileError) as caught:
        fetched(remote(host), tmp_path / "file")
    assert str(caught.value).splitlines()[:2] == [
        f"needed {host.url}/file, and 3 tries did not bring it: {why}",
        f"  where: for {tmp_path / 'file'} (expected SHA-256 {SHA256}, got none)",
    ]
    assert len(host.ranges) == 3
    assert names(tmp_path) == left


def test_a_host_that_is_not_there_is_told(host, tmp_path):
    with pytest.raises(MissingFileError, match="3 tries did not bring it: .*(refused|reset)"):
        fetched(remote(host, url="http://127.0.0.1:9/file"), tmp_path / "file")


def test_a_download_that_was_killed_goes_on(host, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT[:1234])
    fetched(remote(host), tmp_path / "file")
    assert host.ranges == ["bytes=1234-"]


@pytest.mark.parametrize("left", [b"x" * 1234, bytes(300_001), bytes(300_000)], ids=["other bytes", "too many", "as many"])
def test_what_another_download_left_never_becomes_the_file(host, tmp_path, left):
    (tmp_path / "file.partial").write_bytes(left)
    assert fetched(remote(host), tmp_path / "file").read_bytes() == CONTENT


def test_a_full_disk_is_told_before_the_first_byte(host, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(299_000))
    (tmp_path / "file.partial").write_bytes(CONTENT[:500])
    with pytest.raises(DataError) as caught:
        fetched(remote(host), tmp_path / "file")
    assert str(caught.value).startswith(f"needed 299,500 bytes of room for file, and 299,000 are free\n  where: {tmp_path}\n")
    assert host.ranges == []


def fetch_in_process(url, path, done):
    download.PAUSES = (0.0, 0.0)
    done.put(hashlib.sha256(fetched(Remote(url, len(CONTENT), SHA256), Path(path)).read_bytes()).hexdigest())


def test_processes_at_once_fetch_one_file(host, tmp_path):
    host.plan = ["cut 100000", "whole"]
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    processes = [context.Process(target=fetch_in_process, args=(f"{host.url}/file", str(tmp_path / "file"), done)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [done.get(timeout=60) for _ in processes] == [SHA256, SHA256]
    for process in processes:
        process.join()
    assert host.ranges == [None, "bytes=100000-"]
    assert names(tmp_path) == ["file"]


def published(host, monkeypatch):
    """The small set of test_data_images as the host's."""
    files = {name + ".gz": gzip.compress(idx_bytes(array)) for name, array in SET.items()}
    host.files = {f"/{name}": content for name, content in files.items()}
    known = tuple((len(files[f"{stem}.gz"]), hashlib.sha256(files[f"{stem}.gz"]).hexdigest()) for stem in images.FILES)
    monkeypatch.setattr(images, "HOSTS", {"mnist": host.url + "/"})
    monkeypatch.setattr(images, "PUBLISHED", {"mnist": known})


def test_load_fetches_a_named_set_into_the_folder_of_the_variable(host, tmp_path, monkeypatch):
    published(host, monkeypatch)
    monkeypatch.setenv("PPVAE_DATA", str(tmp_path))
    first = data.load("mnist", validation=5)
    assert len(host.ranges) == 4
    assert data.load("mnist", validation=5).train.sha256 == first.train.sha256
    assert len(host.ranges) == 4
    assert names(tmp_path / "mnist") == sorted(f"{stem}.gz" for stem in images.FILES)


def test_load_keeps_downloads_in_the_home_folder_unless_told(host, tmp_path, monkeypatch):
    published(host, monkeypatch)
    monkeypatch.delenv("PPVAE_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(data.load("mnist", validation=5).test) == 10
    assert (tmp_path / ".cache" / "ppvae" / "mnist").is_dir()


@pytest.mark.parametrize("options", [{"download": False}, {"directory": "."}], ids=["forbidden", "a folder of the user's"])
def test_nothing_is_fetched_where_that_was_not_asked_for(host, tmp_path, monkeypatch, options):
    published(host, monkeypatch)
    monkeypatch.setenv("PPVAE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError):
        data.load("mnist", **options)
    assert host.ranges == []


def test_the_published_sums_have_the_form_of_sha256():
    from ppvae.data import celeba, omniglot

    every = [
        *images.remotes("mnist").values(),
        *images.remotes("fashion-mnist").values(),
        *omniglot.REMOTES.values(),
        *celeba.REMOTES.values(),
    ]
    assert len({remote.sha256 for remote in every}) == 13
    assert all(len(bytes.fromhex(remote.sha256)) == 32 and remote.url.startswith("http") for remote in every)


def test_installed_fashion_mnist_unpacks_to_the_published_files():
    """Debian packs the same bytes without a name in gzip's header: each file is shorter by that name and its zero."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    for file, published_as in images.remotes("fashion-mnist").items():
        assert (folder / file).stat().st_size + len(file.removesuffix(".gz")) + 1 == published_as.size
