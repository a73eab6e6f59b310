r"""What a persistent bash is sent for a command, and what it answers: the same for a slot's init and for its host.

A command is one line,

    \eval 'MARK=<nonce>
    <the command>' </dev/null; { 9<"/dev/null/<nonce>/$?/$MARK" || ...; } 2>&60 || \exit 126

The report is bash's message about a file that cannot be opened. That takes redirections, reserved words and assignments
alone, so no function or alias stands in its way. MARK tells whether `eval` was still bash's own: it is the nonce while
the command runs, and `:<nonce>` once it is reported. A second line, sent to those that take their time, reports where
an interrupt made bash drop the first, or the rest of it.
"""

from __future__ import annotations

ERRORS, REPORT = 59, 60
"""Bash's descriptors for what it complains about and for its reports."""
SOON_S = 0.05
"""What takes longer is sent the late line."""
IDLE_CAP = 50_000
"""Bytes kept of each stream of what background jobs write between two calls."""
_MAX_REPORT = 4096
"""Bytes of reports that are kept: what is longer is none."""
_INTERRUPTED = b"130"
_MARK = b"_AGENTENV_CALL"
BEGIN = (
    b"exec 2>&59 59>&-; set +o history +H; unset HISTFILE MAILCHECK; shopt -u checkwinsize; "
    b"PS1= PS2= PROMPT_COMMAND= " + _MARK + b"=\n"
)
"""What it is sent first."""
_REPORT_IT = (
    b'{ 9<"/dev/null/%s/%s/%s" || \\set +evx; PS1= PS2= PROMPT_COMMAND= ' + _MARK + b"=:%s; } 2>&60"
)
_ITS_MARK, _LATE = b"${" + _MARK + b"-unset}", b"late"
_LINE = b"\\eval '" + _MARK + b"=%s\n%s' </dev/null; " + _REPORT_IT + b" || \\exit 126\n"
_POSIX_LINE = b"POSIXLY_CORRECT=y; " + _LINE.replace(b"'", b"'\\unset POSIXLY_CORRECT\n", 1)
"""In this mode, and in no other, bash's own `eval` goes before a function of that name."""
_LATE_LINE = b"[[ " + _ITS_MARK + b" == :%s ]] || " + _REPORT_IT + b"\n"


def line_of(command: bytes, nonce: bytes, last_code: int, *, hides_eval: bool = False) -> bytes:
    """A command as the line that evaluates and reports it. It sees the exit code of the last one in `$?`."""
    if last_code and (b"$?" in command or b"${?" in command):
        command = b"(\\exit %d)\n" % last_code + command
    line = _POSIX_LINE if hides_eval else _LINE
    return line % (nonce, command.replace(b"'", b"'\\''"), nonce, b"$?", _ITS_MARK, nonce)


def late_line(nonce: bytes) -> bytes:
    """Has it report once more, if it has not."""
    return _LATE_LINE % (nonce, nonce, _INTERRUPTED, _LATE, nonce)


def as_on_terminal(text: bytes) -> bytes:
    """What it wrote, as a terminal would have been sent it."""
    return text.replace(b"\n", b"\r\n")


class Report:
    """`bash: /dev/null/<nonce>/<exit code>/<mark>: Not a directory`. Whatever else comes is not for us."""

    __slots__ = ("_wanted", "code", "text", "was_evaluated")

    def __init__(self, nonce: bytes) -> None:
        self._wanted = b"/dev/null/%s/" % nonce
        self.text = b""
        self.code = -1
        """Of the command, once it is reported."""
        self.was_evaluated = False
        """Whether it was bash's own `eval` that had the command, or an interrupt came first."""

    def add(self, data: bytes) -> None:
        """Take in what has come; no more than what is kept of it counts."""
        self.text = (self.text + data)[-_MAX_REPORT:]
        _, found, rest = self.text.partition(self._wanted)
        fields = rest.partition(b":")
        if found and fields[1]:
            code, _, mark = fields[0].partition(b"/")
            self.code = int(code[:3]) if code.isdigit() else 1
            self.was_evaluated = mark != b"" and not mark.startswith(b":")
