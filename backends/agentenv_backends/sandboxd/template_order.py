"""What the host and the process that slots are copies of say to each other."""

from __future__ import annotations

import struct

DESCRIPTORS = struct.Struct("2i")
"""What comes with an order: a slot's stream, and the pipe for its complaints."""
NUMBER = struct.Struct("i")
"""The answer: the process id of the slot's init, or the negative number of an error."""
MAX_ORDER = 1 << 14
