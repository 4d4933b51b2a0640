"""Archives as inputs: members stream out, each broken or unsafe one gets its trouble, none is lost in silence."""

import gzip
import io
import os
import random
import shutil
import struct
import subprocess
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import write

from pipelines import archive
from pipelines.archive import is_archive, member_location, members, open_member
from pipelines.clip import Clip, Rejected
from pipelines.disk import BuildError
from pipelines.local import local_path, member_of
from pipelines.manifest import prepare
from pipelines.sources import Reading, source

Files = Iterable[tuple[str, bytes]]
KINDS = ["a.zip", "a.tar", "a.tar.gz"]


def zipped(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that is there already
        for name, data in files:
            file.writestr(name, data)
    return path


def tarred(path: Path, files: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for name, data in files:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def packed(path: Path, files: Files) -> Path:
    return zipped(path, files) if path.suffix == ".zip" else tarred(path, files)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def read(path: Path, name: str) -> bytes:
    with open_member(path, name) as handle:
        return handle.read()


def place(location: str) -> tuple[Path, str]:
    """The archive and the member of a location."""
    return local_path(location), member_of(location)


def refused(path: Path, name: str) -> str:
    """The detail with which a member is rejected."""
    with pytest.raises(Rejected) as why:
        read(path, name)
    assert why.value.reason == "bad-archive-member"
    return why.value.detail


def clips(path: Path, **reading: object) -> list[Clip]:
    return list(prepare(source("folder").clips(path, Reading(**reading))))


def split(path: Path, size: int) -> None:
    """Cut a zip into volumes as `zip -s` does: records say on which volume they start, and where on it."""
    with zipfile.ZipFile(path) as file:
        infos, start = file.infolist(), file.start_dir
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\5\6")
    large = data[end - 20 : end - 16] == b"PK\6\7"
    for info in infos:
        length = 46 + sum(struct.unpack_from("<3H", data, start + 28))
        struct.pack_into("<H", data, start + 34, info.header_offset // size)
        struct.pack_into("<L", data, start + 42, info.header_offset % size)
        start += length
    first, last = file.start_dir, (len(data) - 1) // size
    assert (end - 76) // size == last, "the end records must lie on the last volume"
    if large:
        place = end - 76
        struct.pack_into("<LQL", data, end - 16, place // size, place % size, last + 1)
        struct.pack_into("<2L", data, place + 16, last, first // size)
        struct.pack_into("<Q", data, place + 48, first % size)
    else:
        struct.pack_into("<2H", data, end + 4, last, first // size)
        struct.pack_into("<L", data, end + 16, first % size)
    for number in range(last):
        path.with_suffix(f".z{number + 1:02d}").write_bytes(data[number * size : (number + 1) * size])
    path.write_bytes(data[last * size :])


@pytest.mark.parametrize("name", KINDS)
def test_members_come_in_order_with_their_sizes_and_bytes(tmp_path, name):
    files = [(f"d/{number}.bin", noise(number * 5_000, number)) for number in (3, 1, 0, 2)]
    path = packed(tmp_path / name, files)
    assert is_archive(path)
    assert [(each.name, each.size, each.trouble) for each in members(path)] == [(n, len(d), "") for n, d in files]
    assert [read(path, name) for name, _ in reversed(files)] == [data for _, data in reversed(files)]


@pytest.mark.parametrize("name", ["a#b.wav", "new\nline.wav", "caf\udce9.wav", "100%.wav", "a b/\u00e9?.wav"])
def test_a_location_leads_back_to_its_member(tmp_path, name):
    path = tarred(tmp_path / "odd #1 \udce9.tar", [(name, b"sound")])
    (member,) = members(path)
    location = member_location(path, member.name)
    assert location.isprintable() and location.count("#") == 1
    assert place(location) == (path, name) and read(*place(location)) == b"sound"


def test_names_of_a_zip_are_utf8_where_they_can_be_and_else_of_dos(tmp_path):
    names = ["caf__.wav", "caf_.wav", "caf+.wav"]
    data = zipped(tmp_path / "a.zip", [(name, b"x") for name in names]).read_bytes()
    data = data.replace(b"caf__", "caf\u00e9".encode()).replace(b"caf_", b"caf\x82")
    flagged = data.rindex(b"PK\1\2")
    data = data[: flagged + 8] + struct.pack("<H", 0x800) + data[flagged + 10 :].replace(b"caf+", b"caf\xe9")
    (tmp_path / "a.zip").write_bytes(data)
    assert [each.name for each in members(tmp_path / "a.zip")] == ["caf\u00e9.wav", "caf\u00e9#2.wav", "caf\udce9.wav"]
    assert read(tmp_path / "a.zip", "caf\udce9.wav") == b"x"


@pytest.mark.parametrize("name", KINDS)
def test_names_that_lead_out_are_listed_with_their_trouble_and_not_read(tmp_path, name):
    names = ["../up.wav", "a/../../up.wav", "/etc/passwd.wav", "C:/x.wav", "a\\..\\b.wav"]
    path = packed(tmp_path / name, [(name, b"x") for name in [*names, "..good..wav"]])
    found = {each.name: each.trouble for each in members(path)}
    assert list(found) == [*names, "..good..wav"]
    assert [name for name, trouble in found.items() if not trouble] == ["..good..wav"]
    assert all("leads out" in refused(path, name) for name in names)
    assert read(path, "..good..wav") == b"x"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_of_a_tar_are_refused(tmp_path, kind):
    link = tarfile.TarInfo("link.wav")
    link.type, link.linkname = kind, "/etc/passwd"
    path = tarred(tmp_path / "a.tar", [("good.wav", b"x"), (link, b"")])
    assert [bool(each.trouble) for each in members(path)] == [False, True]
    assert refused(path, "link.wav")


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link.wav")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    assert "link" in refused(tmp_path / "a.zip", "link.wav")


def test_an_encrypted_member_is_refused_and_its_neighbour_is_not(tmp_path):
    path = zipped(tmp_path / "a.zip", [("secret.wav", b"x"), ("open.wav", b"y")])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in refused(path, "secret.wav") and read(path, "open.wav") == b"y"


def test_a_method_that_cannot_be_read_in_bounded_memory_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a.wav", bytes(1_000))], zipfile.ZIP_BZIP2)
    assert "method 12" in refused(path, "a.wav")


def test_a_bomb_costs_what_is_read_of_it(tmp_path):
    deflate = zlib.compressobj(wbits=-15)
    block = deflate.compress(bytes(2**24)) + deflate.flush(zlib.Z_FULL_FLUSH)
    path = zipped(tmp_path / "a.zip", [("bomb.wav", block * 64 + deflate.flush())], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.rindex(b"PK\1\2") + 10, zipfile.ZIP_DEFLATED)
    struct.pack_into("<L", data, data.rindex(b"PK\1\2") + 24, 2**30)
    path.write_bytes(data)
    tracemalloc.start()
    with open_member(path, "bomb.wav") as handle:
        assert handle.read(2**20) == bytes(2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_tar_gz_that_unpacks_without_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "EXPANSION", (20, 2**20))
    path = tarred(tmp_path / "a.tar.gz", [("a.wav", b"x"), ("bomb.wav", bytes(2**24)), ("b.wav", b"y")])
    with pytest.raises(BuildError, match="unpacks to over"):
        list(members(path))
    assert read(path, "a.wav") == b"x" and "unpacks to over" in refused(path, "bomb.wav")


def test_a_tar_gz_that_unpacks_without_end_is_not_unpacked_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "EXPANSION", (20, 2**20))
    path = tmp_path / "a.tar.gz"
    plain = tarred(tmp_path / "a.tar", [("a.wav", b"x")]).read_bytes()
    path.write_bytes(gzip.compress(plain) + gzip.compress(bytes(2**22)) * 50)
    assert archive.unpacked(path, 2**20) <= 2**20 + archive.PIECE
    with pytest.raises(BuildError, match="unpacks to over"):
        list(members(path))
    monkeypatch.undo()
    assert archive.unpacked(path, 2**30) == len(plain) + 50 * 2**22


def test_a_size_below_zero_in_a_tar_is_an_error(tmp_path):
    info = tarfile.TarInfo("b.wav")
    info.pax_headers = {"size": "-1"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(tarfile.TarInfo("a.wav"))
        file.addfile(info)
    with pytest.raises(BuildError, match=r"a size below 0 for 'b\.wav'"):
        list(members(tmp_path / "a.tar"))


def test_members_of_a_zip_that_share_bytes_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a.wav", noise(1_000)), ("b.wav", noise(1_000))])
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 42 : data.rindex(b"PK\1\2") + 46] = bytes(4)
    path.write_bytes(data)
    assert "overlaps" in refused(path, "a.wav")


def test_two_members_of_one_name_keep_their_own_bytes(tmp_path):
    for name in KINDS:
        path = packed(tmp_path / name, [("a.wav", b"one"), ("a.wav", b"two"), ("./a.wav", b"three"), ("b", b"x")])
        assert [each.name for each in members(path)] == ["a.wav", "a#2.wav", "a#3.wav", "b"]
        assert [read(path, name) for name in ("a.wav", "a#2.wav", "a#3.wav")] == [b"one", b"two", b"three"]


def test_a_flipped_bit_in_a_zip_costs_that_member_only(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a.wav", noise(50_000)), ("b.wav", b"fine")], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[20_000] ^= 1
    path.write_bytes(data)
    assert "CRC" in refused(path, "a.wav") and read(path, "b.wav") == b"fine"


def test_a_size_that_is_a_lie_is_refused(tmp_path):
    for lie in (0, 10, 100_000):
        path = zipped(tmp_path / "a.zip", [("a.wav", noise(5_000))])
        data = bytearray(path.read_bytes())
        struct.pack_into("<L", data, data.index(b"PK\1\2") + 24, lie)
        path.write_bytes(data)
        assert refused(path, "a.wav")


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_cut_anywhere_is_an_error_and_what_was_listed_can_be_read(tmp_path, name):
    files = [(f"{number}.wav", noise(3_000, number)) for number in range(10)]
    whole = packed(tmp_path / name, files).read_bytes()
    last = 35_840 if name == "a.tar" else len(whole) - 1_100  # what follows is padding
    for length in (*range(1, last, 3_333), 512, 3_584, last):  # tars at the edges of members too
        path = tmp_path / f"{length}-{name}"
        path.write_bytes(whole[:length])
        listed = []
        with pytest.raises(BuildError, match="members only"):
            for member in members(path):
                listed.append(member.name)
        for name, data in files:
            if name in listed[:-1]:
                assert read(path, name) == data
            elif name not in listed:
                assert refused(path, name)


def test_damage_in_the_middle_of_a_tar_gz_spoils_nothing_well_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "DOUBT", 2**20)
    files = [(f"{number}.wav", noise(200_000, number).hex().encode()) for number in range(20)]
    path = tarred(tmp_path / "a.tar.gz", files)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = noise(len(data) - len(data) // 2)
    path.write_bytes(data)
    listed = []
    with pytest.raises(BuildError, match="damaged"):
        for member in members(path):
            listed.append(member.name)
    assert 5 < len(listed) < 12
    assert [read(path, name) for name, _ in files[:3]] == [content for _, content in files[:3]]
    assert all("damaged" in refused(path, name) for name, _ in files[8:])


def test_a_wrong_checksum_of_a_tar_gz_is_an_error_since_any_member_may_be_damaged(tmp_path):
    path = tarred(tmp_path / "a.tar.gz", [("a.wav", noise(5_000))])
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(BuildError, match="CRC"):
        list(members(path))
    assert "CRC" in refused(path, "a.wav")


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_no_archive_is_an_error_that_says_so(tmp_path, name):
    for content in (b"", b"<html>not found</html>" * 100, b"\x1f\x8b" + noise(2_000), b"PK\3\4" + noise(2_000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BuildError, match="0 members only"):
            list(members(tmp_path / name))
        assert refused(tmp_path / name, "a.wav")


def test_a_member_or_an_archive_that_is_not_there_is_the_clips_trouble(tmp_path):
    assert "no such member" in refused(zipped(tmp_path / "a.zip", [("a.wav", b"x")]), "b.wav")
    with pytest.raises(Rejected) as why:
        read(tmp_path / "none.zip", "a.wav")
    assert why.value.reason == "missing-file"


def test_an_archive_that_changed_is_listed_anew(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a.wav", b"one")])
    assert read(path, "a.wav") == b"one"
    zipped(path, [("b.wav", b"other")])
    assert [each.name for each in members(path)] == ["b.wav"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_what_follows_the_end_of_a_tar_is_not_passed_over(tmp_path, name):
    path = tarred(tmp_path / name, [("a.wav", b"x")])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(BuildError, match="more follows"):
        list(members(path))


def test_an_archive_whose_own_name_is_odd_is_read(tmp_path):
    for kind in KINDS:
        path = packed(tmp_path / f"caf\udce9\n#{kind}", [("a.wav", b"x")])
        assert read(*place(member_location(path, "a.wav"))) == b"x"


def test_a_header_of_absurd_length_is_not_read(tmp_path):
    long = tarfile.TarInfo("x")
    long.type = tarfile.GNUTYPE_LONGNAME
    path = tarred(tmp_path / "a.tar", [("a.wav", b"x"), (long, b"n" * (archive.LONGEST_HEADER + 1))])
    with pytest.raises(BuildError, match="a header of over"):
        list(members(path))


def test_a_header_that_leads_backwards_does_not_hang(tmp_path):
    path = tarred(tmp_path / "a.tar", [("a.wav", noise(600)), ("b.wav", b"")])
    data = bytearray(path.read_bytes())
    header = data[1536:2048]
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -2048)  # a size below zero
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    data[1536:2048] = header
    path.write_bytes(data)
    with pytest.raises(BuildError, match="backwards"):
        list(members(path))


def test_too_many_members_are_an_error_that_names_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_MEMBERS", 3)
    path = zipped(tmp_path / "a.zip", [(f"{number}.wav", b"x") for number in range(4)])
    with pytest.raises(BuildError, match="over 3 members"):
        list(members(path))


@pytest.mark.parametrize("name", KINDS)
def test_many_threads_read_one_archive_at_once(tmp_path, name):
    files = [(f"{number}.wav", noise(100_000, number)) for number in range(20)]
    path = packed(tmp_path / name, files)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda each: read(path, each), [name for name, _ in files * 3])) == [
            d for _, d in files * 3
        ]


def test_a_split_zip_with_more_members_than_16_bits_count_is_read_whole(tmp_path):
    path = zipped(
        tmp_path / "many.zip", ((f"{number}.wav", b"%d" % number) for number in range(70_000)), zipfile.ZIP_STORED
    )
    split(path, 1_000_000)
    found = list(members(path))
    assert len(found) == 70_000 and not any(each.trouble for each in found)
    assert len(list(tmp_path.glob("many.z*"))) > 5
    for number in (0, 21_000, 35_555, 65_536, 69_999):
        assert read(path, f"{number}.wav") == b"%d" % number


def test_a_small_split_zip_is_read_across_its_parts(tmp_path):
    files = [(f"{number}.wav", noise(30_000, number)) for number in range(20)]
    path = zipped(tmp_path / "a.zip", files)
    split(path, 50_000)
    assert [(each.name, read(path, each.name)) for each in members(path)] == files


def test_a_part_that_is_missing_is_an_error_that_names_it(tmp_path):
    path = zipped(tmp_path / "a.zip", [(f"{number}.wav", noise(30_000, number)) for number in range(20)])
    split(path, 50_000)
    (tmp_path / "a.z03").unlink()
    with pytest.raises(BuildError, match=r"a\.z03 is missing"):
        list(members(path))
    with pytest.raises(BuildError, match=r"a\.z03 is missing"):
        read(path, "0.wav")


@pytest.mark.skipif(not shutil.which("zip"), reason="the program zip is not here")
def test_what_the_program_zip_splits_is_read(tmp_path):
    names = ["caf\u00e9.wav", "d/b.wav", *(f"{number}.wav" for number in range(30))]
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(noise(20_000, number))
    line = ["zip", "-q", "-r", "-s", "64k", "../a.zip", "."]
    subprocess.run(line, cwd=tmp_path / "in", check=True, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert len(list(tmp_path.glob("a.z[0-9]*"))) > 5
    found = {each.name: read(tmp_path / "a.zip", each.name) for each in members(tmp_path / "a.zip")}
    assert found == {name: noise(20_000, number) for number, name in enumerate(names)}


def test_bytes_before_a_zip_do_no_harm(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a.wav", b"one"), ("b.wav", b"two")])
    path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())
    assert [read(path, each.name) for each in members(path)] == [b"one", b"two"]


def test_several_streams_of_gzip_in_one_file_are_one_tar(tmp_path):
    data = tarred(tmp_path / "a.tar", [("a.wav", noise(5_000)), ("b.wav", noise(5_000, 1))]).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data[:4_000]) + gzip.compress(data[4_000:]))
    assert [read(tmp_path / "a.tar.gz", each.name) for each in members(tmp_path / "a.tar.gz")] == [
        noise(5_000),
        noise(5_000, 1),
    ]


# ---- the source


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_gives_the_clips_that_its_folder_gives(tmp_path, name):
    write(tmp_path / "in/bark/A dog.wav")
    write(tmp_path / "in/bark/7.flac")
    write(tmp_path / "in/sub/listed.wav")
    (tmp_path / "in/readme.txt").write_text("no sound")
    (tmp_path / "in/sub/metadata.csv").write_text("file_name,text\nlisted.wav,A cat\nabsent.wav,A cow\n")
    files = [(f"./{each.relative_to(tmp_path / 'in')}", each.read_bytes()) for each in (tmp_path / "in").rglob("*.*")]
    path = packed(tmp_path / name, files)

    def facts(clips: list[Clip]) -> set[object]:
        return {(each.id, each.captions, each.labels, each.original, each.split) for each in clips}

    inside = clips(path, labels_from_folders=True)
    assert facts(inside) == facts(clips(tmp_path / "in", labels_from_folders=True)) and len(inside) == 4
    for clip in inside:
        if "absent" in clip.id:
            assert refused(*place(clip.location))
        else:
            assert read(*place(clip.location)) == (tmp_path / "in" / clip.id.removeprefix("folder/")).read_bytes()
            assert clip.size == len(read(*place(clip.location)))


def test_an_unsafe_member_is_a_rejected_row(tmp_path):
    path = zipped(tmp_path / "a.zip", [("../dog.wav", b"x"), ("/cat.wav", b"y"), ("cow.wav", b"z")])
    found = {clip.id: clip.reason for clip in clips(path)}
    assert found == {
        "folder/../dog.wav": "bad-archive-member",
        "folder//cat.wav": "bad-archive-member",
        "folder/cow.wav": "",
    }


def test_a_table_in_an_archive_names_no_file_outside(tmp_path):
    sound = write(tmp_path / "outside.wav")
    rows = f"file_name,text\n{sound},A\nfile://{sound}?,B\n../outside.wav,C\n"
    path = zipped(tmp_path / "a.zip", [("metadata.csv", rows.encode())])
    found = clips(path)
    assert len(found) == 3 and all(refused(*place(clip.location)) for clip in found)


def test_a_table_in_an_archive_does_not_see_the_archives_of_this_machine(tmp_path):
    outside = zipped(tmp_path / "x.zip", [("a.wav", b"x")])
    rows = f"file_name,text\n{outside}#a.wav,A\n".encode()
    path = zipped(tmp_path / "a.zip", [("metadata.csv", rows)])
    (clip,) = clips(path)
    assert place(clip.location) == (path, f"{str(outside)[1:]}#a.wav")


@pytest.mark.parametrize("name", KINDS)
def test_a_second_table_of_the_same_name_in_an_archive_is_an_error(tmp_path, name):
    rows = [(f"{folder}in/metadata.csv", b"file_name,text\na.wav,A\n") for folder in ("", "./")]
    with pytest.raises(BuildError, match=r"in/metadata\.csv is there more than once"):
        clips(packed(tmp_path / name, [*rows, ("in/a.wav", b"x")]))


@pytest.mark.parametrize("rows", [b'file_name,text\nonly one cell\n"', b"file_name,text,text\na.wav,a,b,c,d\n"])
def test_a_table_that_cannot_be_read_is_named_as_in_its_archive(tmp_path, rows):
    with pytest.raises(BuildError, match=r"cannot read sub/metadata\.csv"):
        clips(zipped(tmp_path / "a.zip", [("sub/metadata.csv", rows)]))


def test_a_table_larger_than_the_limit_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.sources.folder.LARGEST_TABLE", 1_000)
    with pytest.raises(BuildError, match="larger than 1000 bytes"):
        clips(zipped(tmp_path / "a.zip", [("metadata.csv", b"file_name\n" * 1_000)]))


def test_a_file_that_is_neither_a_folder_nor_an_archive_is_an_error(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    with pytest.raises(BuildError, match="takes a folder of audio files, a zip"):
        clips(tmp_path / "a.rar")
