"""A small Git repository with a fault, whose later commit mends it, and the row that asks for that."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

SECRET = "the-mended-version"  # only in a later commit
_FILES = {
    "calc/__init__.py": "from calc.sums import total\n",
    "calc/sums.py": "def total(numbers):\n    return sum(numbers[1:])\n",
    "tests/test_sums.py": (
        "import pytest\nfrom calc import total\nfrom tests.helpers import same\n\n\n"
        "def test_nothing(zero):\n    assert total([]) == zero\n\n\n"
        "@pytest.mark.parametrize('n', [0, 1])\ndef test_zeros(n):\n    assert same(total([0] * n), 0)\n"
    ),
    "tests/__init__.py": "",
    "tests/helpers.py": "def same(one, other):\n    return one == other\n",
    "conftest.py": "import pytest\n\n\n@pytest.fixture\ndef zero():\n    return 0\n",
    "pytest.ini": "[pytest]\naddopts = --strict-markers\n",
    ".gitattributes": "tests/helpers.py export-ignore\n",
}
MENDED = "def total(numbers):\n    return sum(numbers)\n"
TEST_PATCH = """\
--- a/tests/test_sums.py
+++ b/tests/test_sums.py
@@ -10,3 +10,8 @@
 @pytest.mark.parametrize('n', [0, 1])
 def test_zeros(n):
     assert same(total([0] * n), 0)
+
+
+class TestSums:
+    def test_all_count(self):
+        assert same(total([1, 2, 3]), 6)
"""


def git(folder: Path, *arguments: str) -> str:
    names = {
        f"GIT_{role}_{key}": "a@b" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"} | names
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def make_repository(folder: Path) -> dict[str, Any]:
    """A repository in `folder`, and the row of its fault."""
    for name, content in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / "link").symlink_to("calc")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "faulty")
    commit = git(folder, "rev-parse", "HEAD")
    (folder / "calc/sums.py").write_text(f"# {SECRET}\n{MENDED}")
    git(folder, "commit", "-qam", SECRET)
    git(folder, "tag", SECRET)
    git(folder, "gc", "-q")  # packed refs and objects
    return {
        "instance_id": "calc-1",
        "repo": str(folder),
        "base_commit": commit,
        "problem_statement": "total() forgets the first number.",
        "FAIL_TO_PASS": '["tests/test_sums.py::TestSums::test_all_count"]',
        "PASS_TO_PASS": [
            "tests/test_sums.py::test_nothing",
            "tests/test_sums.py::test_zeros[0]",
            "tests/test_sums.py::test_zeros[1]",
        ],
        "test_patch": TEST_PATCH,
    }
