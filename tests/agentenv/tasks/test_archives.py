import io
import tarfile

from agentenv.tasks.archives import MAX_FILES, cleaned


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.uid, info.mode = kind, target, 4711, 0o4755
    return info


def names_in(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return tar.getnames()


def test_files_and_folders_are_kept_without_owners_and_special_bits():
    clean = cleaned(archive((member("./a", tarfile.DIRTYPE), b""), (member("./a/x"), b"content")))
    with tarfile.open(fileobj=io.BytesIO(clean.content)) as tar:
        file = tar.getmember("./a/x")
        assert (file.uid, file.mode) == (0, 0o755)
        content = tar.extractfile(file)
        assert content is not None
        assert content.read() == b"content"
    assert (clean.files, clean.left_out) == (1, ())


def test_whatever_could_lead_elsewhere_is_left_out_and_told():
    clean = cleaned(
        archive(
            (member("../up"), b"x"),
            (member("/etc/passwd"), b"x"),
            (member("a/../../b"), b"x"),
            (member("link", tarfile.SYMTYPE, "/etc/passwd"), b""),
            (member("hard", tarfile.LNKTYPE, "/etc/passwd"), b""),
            (member("pipe", tarfile.FIFOTYPE), b""),
            (member("device", tarfile.CHRTYPE), b""),
            (member("x" * 2000), b"x"),
            (member("fine"), b"x"),
        )
    )
    assert names_in(clean.content) == ["fine"]
    assert len(clean.left_out) == 8


def test_sparse_files_are_left_out_unexpanded():
    sparse = tarfile.TarInfo("sparse")
    sparse.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(1 << 40),
    }
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        content = b"0\n" + b"\0" * 510
        sparse.size = len(content)
        tar.addfile(sparse, io.BytesIO(content))
    clean = cleaned(target.getvalue())
    assert clean.files == 0
    assert len(clean.left_out) == 1


def test_a_broken_archive_gives_what_was_whole():
    whole = archive((member("a"), b"1" * 600), (member("b"), b"2" * 600))
    assert names_in(cleaned(whole[:1800]).content) == ["a"]
    assert cleaned(b"no archive at all").files == 0
    assert cleaned(b"").files == 0


def test_there_is_an_end_to_the_number_of_files():
    clean = cleaned(archive(*((member(f"f{n}"), b"") for n in range(MAX_FILES + 3))))
    assert clean.files == MAX_FILES
    assert "everything after" in clean.left_out[-1]
