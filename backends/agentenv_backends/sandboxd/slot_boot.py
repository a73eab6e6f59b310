"""Runs first in a slot: makes the compiled modules importable, without a file of ours in the slot.

The interpreter is started with a line that unpacks this module's code from a descriptor that all slots of a host share,
and runs it with the unpacked modules as `codes`.
"""

from __future__ import annotations

import marshal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, Optional

    # Present before this module runs.
    codes: Dict[str, Optional[bytes]] = {}


class _Bundle:
    """Finds modules by name in `codes`, compiled and packed; None stands for a package without code."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name not in codes:
            return None
        # The class without its module: importing `importlib.machinery` would cost more than all of this.
        spec_type: Any = type(sys.__spec__)
        return spec_type(name, _Bundle, is_package=codes[name] is None)

    @staticmethod
    def create_module(spec: "Any") -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        code = codes[module.__name__]
        if code is not None:
            # Unpacked one by one: what most slots never import costs them next to nothing.
            exec(marshal.loads(code), module.__dict__)  # noqa: S102, S302 - the host's own code


def boot(module: str) -> None:
    """Run a module's `main`."""
    sys.meta_path.insert(0, _Bundle)
    __import__(module)
    sys.modules[module].main()
