import pytest

from agentenv.tasks.integrity import changed

BEFORE = {"/usr/bin/bash": "1 10 5", "/usr/bin/env": "2 10 5", "/bin/bash": "1 10 5"}


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ({}, []),
        ({"/usr/bin/bash": "1 10 6"}, ["/usr/bin/bash"]),
        ({"/usr/bin/env": None}, ["/usr/bin/env"]),
        ({"/usr/local/bin/bash": "9 1 9"}, ["/usr/local/bin/bash"]),
        ({"/usr/local/bin/python3": "9 1 9"}, []),  # there was none: nothing is hidden by it
        ({"/etc/ld.so.preload": "9 1 9"}, ["/etc/ld.so.preload"]),
        ({"/usr/lib/python3/sitecustomize.py": "9 1 9"}, ["/usr/lib/python3/sitecustomize.py"]),
    ],
)
def test_what_tests_lean_on_must_be_as_it_was(after, found):
    merged = {**BEFORE, **after}
    assert changed(BEFORE, {path: mark for path, mark in merged.items() if mark}) == found
