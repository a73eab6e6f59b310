import pytest

from agentenv.tasks.rules import checked_host, checked_step_name, megabytes


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("example.com", "example.com"), (" Example.COM. ", "example.com"), ("*.a.b", "*.a.b"),
        ("localhost", "localhost"),
        ("10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("10.0.0.0/8", "10.0.0.0/8"), ("fd00::/8", "fd00::/8"),
    ],
)  # fmt: skip
def test_hosts_that_may_be_listed(text, host):
    assert checked_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com", "example.com:443", "[::1]", "10.0.0.1/8", "*.10.0.0.1", "a.*", "-a.b", "a_b.c", "", "*",
        "example.com/path", "a..b", "10.0.0.256", "fe80::1%eth0", "x" * 64 + ".com",
    ],
)  # fmt: skip
def test_hosts_that_may_not(text):
    with pytest.raises(ValueError, match="is no host"):
        checked_host(text)


@pytest.mark.parametrize(
    ("text", "size"), [("1G", 1024), ("512M", 512), ("1.5g", 1536), ("2048K", 2), ("1K", 1), ("2GB", 2048)]
)  # fmt: skip
def test_legacy_sizes_are_megabytes(text, size):
    assert megabytes(text) == size


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "a:b", "con", "Com1.txt", "a ", "a.", "a\nb", "\u00e9" * 128, "a\x00b"]
)  # fmt: skip
def test_names_that_are_no_folders_everywhere_are_refused(name):
    with pytest.raises(ValueError, match=r"name|ends with|device|holds"):
        checked_step_name(name)


def test_other_names_are_kept():
    assert checked_step_name("01 prüfe-das_hier.x") == "01 prüfe-das_hier.x"
