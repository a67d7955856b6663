"""Archives are read in memory: hostile members write nothing, and none is read beyond its allowance."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile

import pytest

from ppvae.data import archives
from ppvae.data.archives import members
from ppvae.errors import DataError


def zipped(folder, *named, mode=0):
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in named:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(info, content)
    return path


def tarred(folder, *named, kind=tarfile.REGTYPE):
    path = folder / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in named:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return path


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("packed", [zipped, tarred])
def test_members_come_in_order_and_nothing_is_written(tmp_path, packed):
    path = packed(tmp_path, ("b/2.png", b"two"), ("readme.txt", b"no"), ("a/1.PNG", b"one"))
    assert list(members(path, (".png",))) == [("b/2.png", b"two"), ("a/1.PNG", b"one")]
    assert everything(tmp_path) == [path.name]


@pytest.mark.parametrize("packed", [zipped, tarred])
@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "C:/x.png", "..\\x.png"])
def test_a_name_that_leads_out_is_refused(tmp_path, packed, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = packed(inside, ("fine.png", b"1"), (name, b"2"))
    with pytest.raises(DataError, match="needed plain files, and a member with a name that leads out of the folder came"):
        list(members(path, (".png",)))
    assert everything(tmp_path) == ["inside", f"inside/{path.name}"]


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: zipped(folder, ("x.png", b"/etc/passwd"), mode=0o120777),
        lambda folder: tarred(folder, ("x.png", b""), kind=tarfile.SYMTYPE),
        lambda folder: tarred(folder, ("x.png", b""), kind=tarfile.LNKTYPE),
        lambda folder: tarred(folder, ("x.png", b""), kind=tarfile.CHRTYPE),
        lambda folder: tarred(folder, ("x.png", b""), kind=tarfile.FIFOTYPE),
    ],
    ids=["zip link", "tar link", "tar hard link", "device", "pipe"],
)
def test_links_and_devices_are_refused(tmp_path, write):
    with pytest.raises(DataError, match=r"a member with a link or a device came: 'x\.png'"):
        list(members(write(tmp_path), (".png",)))


@pytest.mark.parametrize("packed", [zipped, tarred])
def test_a_bomb_is_read_to_its_allowance_and_no_further(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1000)
    asked = []
    real = zipfile.ZipExtFile.read

    def counted(self, n=-1):
        asked.append(n)
        return real(self, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    with pytest.raises(DataError, match=r"the archive is too large to be read: x\.png unpacks to more than 1,000 bytes"):
        list(members(packed(tmp_path, ("x.png", bytes(20_000_000))), (".png",)))
    assert all(n == 1001 for n in asked)


def test_many_small_members_have_an_allowance_together(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    path = zipped(tmp_path, *((f"{i}.png", bytes(300)) for i in range(5)))
    found = members(path, (".png",))
    assert [next(found)[0] for _ in range(3)] == ["0.png", "1.png", "2.png"]
    with pytest.raises(DataError, match="too large"):
        next(found)


def test_a_million_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    with pytest.raises(DataError, match="more than 10 members"):
        list(members(zipped(tmp_path, *((f"{i}.txt", b"") for i in range(20))), (".png",)))


@pytest.mark.parametrize("packed", [zipped, tarred])
@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"nothing of the kind"], ids=["cut", "empty", "text"]
)
def test_a_damaged_archive_is_told(tmp_path, packed, damage):
    path = packed(tmp_path, ("x.png", bytes(range(256)) * 40))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="needed a whole archive, and it does not unpack"):
        list(members(path, (".png",)))


def test_a_flipped_bit_is_noticed(tmp_path):
    path = zipped(tmp_path, ("x.png", bytes(range(256)) * 40))
    content = bytearray(path.read_bytes())
    content[60] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="it does not unpack"):
        list(members(path, (".png",)))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip"])
def test_a_pickle_under_any_name_runs_nothing_and_is_refused_in_a_line(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pickle.dumps(_Touching(str(tmp_path / "touched"))))
    with pytest.raises(DataError) as raised:
        list(members(path, ("",)))
    assert "\n" not in raised.value.problem and not (tmp_path / "touched").exists()


class _Touching:
    """Unpickled, it makes a file."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return open, (self.name, "w")
