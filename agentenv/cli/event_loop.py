"""Running a command to its end, whatever an environment's own code leaves running."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

LEFT_OVER_S = 3.0
"""What is still running when all is done may take so long to end: threads, and tasks that catch their cancellation."""
_THREADS = 256
"""Made as they are needed. Far more than asyncio's few per processor: files are written in them too, which must not
wait for verifiers that hang.
"""
_FAILED, _INTERRUPTED = 1, 130


def run_to_the_end(work: Coroutine[Any, Any, int]) -> int:
    """`asyncio.run`, but what does not end within `LEFT_OVER_S` after `work` is left, and the program ended under it.

    Nothing can end a thread: a verifier that hangs in one would keep the program for ever. `work` has to have
    everything written and given back when it returns.
    """
    status, error = _INTERRUPTED, ""
    with asyncio.Runner() as runner:
        try:
            runner.get_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
            status = runner.run(work)
        except Exception as failure:
            status, error = _FAILED, f"error: {failure}\n"
            raise
        finally:
            _close(runner, status, error)
    return status


def _close(runner: asyncio.Runner, status: int, error: str) -> None:
    end = threading.Timer(LEFT_OVER_S, _end_the_program, (status, error))
    end.daemon = True
    end.start()
    try:
        runner.close()
    except KeyboardInterrupt:
        raise  # out of the wait for a thread, which the interpreter would go on with
    except BaseException:
        end.cancel()
        raise
    end.cancel()


def _end_the_program(status: int, error: str) -> None:
    sys.stderr.write(
        f"{error}the environment's code still runs {LEFT_OVER_S:g} s after the end, in a thread or in spite of being "
        "cancelled; it is left\n"
    )
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
