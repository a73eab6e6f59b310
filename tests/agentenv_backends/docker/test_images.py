"""What a build is sent, and when it is the same as before."""
# mypy: disable-error-code="no-untyped-call"

import io
import os
import tarfile

import pytest

from agentenv_backends.docker._ignore import ignored_by
from agentenv_backends.docker.images import pack_context


@pytest.fixture
def dockerfile(tmp_path):
    path = tmp_path / "Dockerfile"
    path.write_text("FROM scratch\n")
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "context"
    (folder / "src/deep").mkdir(parents=True)
    for name in ("a.txt", "src/b.py", "src/deep/c.pyc", ".env"):
        (folder / name).write_text(name)
    (folder / "link").symlink_to("a.txt")
    return folder


def packed(dockerfile, folder):
    archive = io.BytesIO()
    digest = pack_context(dockerfile, folder, archive)
    with tarfile.open(fileobj=archive) as tar:
        return digest, {member.name: member for member in tar}


def test_the_dockerfile_alone_is_enough(dockerfile):
    _, members = packed(dockerfile, None)
    assert list(members) == [".agentenv.Dockerfile"]


def test_a_context_holds_what_is_below_the_folder(dockerfile, folder):
    _, members = packed(dockerfile, folder)
    assert set(members) == {
        ".agentenv.Dockerfile", "a.txt", ".env", "link", "src", "src/b.py", "src/deep", "src/deep/c.pyc",
    }  # fmt: skip
    assert members["link"].issym()


def test_what_is_ignored_is_left_out(dockerfile, folder):
    (folder / ".dockerignore").write_text("# secrets\n.env\n**/*.pyc\n")
    _, members = packed(dockerfile, folder)
    assert ".env" not in members
    assert "src/deep/c.pyc" not in members
    assert "src/b.py" in members


def test_equal_content_is_equal_whatever_its_times_and_owners(dockerfile, folder):
    before, _ = packed(dockerfile, folder)
    for path in (dockerfile, folder / "a.txt", folder / "src"):
        os.utime(path, (1, 1))
    (folder / "a.txt").chmod(0o600)
    assert packed(dockerfile, folder)[0] == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a.txt").write_text("other"),
        lambda folder: (folder / "a.txt").rename(folder / "z.txt"),
        lambda folder: (folder / "a.txt").chmod(0o755),
        lambda folder: (folder.parent / "Dockerfile").write_text("FROM other\n"),
    ],
)
def test_any_change_of_content_shows(dockerfile, folder, change):
    before, _ = packed(dockerfile, folder)
    change(folder)
    assert packed(dockerfile, folder)[0] != before


def test_a_context_that_is_no_folder_is_refused(dockerfile):
    with pytest.raises(NotADirectoryError, match="build_context"):
        packed(dockerfile, dockerfile)


@pytest.mark.parametrize(
    ("rules", "ignored", "kept"),
    [
        ("*.md", ["a.md"], ["docs/a.md", "a.mdx"]),
        ("**/*.md", ["a.md", "x/y/a.md"], ["a.py"]),
        ("docs", ["docs", "docs/a", "docs/b/c"], ["docs2", "x/docs"]),
        ("/docs/", ["docs", "docs/a"], ["x/docs"]),
        ("*\n!keep.txt", ["a", "b/c"], ["keep.txt"]),
        ("a?c[0-9]", ["abc1"], ["abbc1", "abcx"]),
        ("**", ["a", "a/b"], []),
        ("# *\n\n", [], ["a", "# *"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_rules_of_a_dockerignore(rules, ignored, kept):
    is_ignored = ignored_by(rules)
    assert [path for path in ignored if not is_ignored(path)] == []
    assert [path for path in kept if is_ignored(path)] == []
