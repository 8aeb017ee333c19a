"""How a command ends before its time: by a signal, by a closed terminal, or by an error that nobody foresaw.

Schedulers announce the end of a job by one of the SIGNALS, as they are told: SLURM by `--signal`, others by SIGTERM. A
terminal that is closed sends SIGHUP, and Ctrl-C is SIGINT. All of them ask for the same.

    begin()           when Python starts a command: from now on, a signal ends it with a sentence
    noticed()         for long work that can save: a signal is noticed, and the work ends itself
    requested()       for code inside of it that waits: has a signal arrived?
    interrupting()    for work that cleans up: a signal is a KeyboardInterrupt
    run(main)         an error that nobody foresaw becomes two lines, and its traceback a file

This module imports nothing that takes time, because `begin` comes before all other imports.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from vologan_fast.words import say_error

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
EXIT = 130
"""Exit code of a command that a signal has ended."""
_terminals: list[int] = []
"""Descriptors of the outputs that were terminals at the start."""
_received: list[int] = []
"""The signals that `noticed` has noticed."""
_abandoned = False


class Stopped(Exception):
    """A signal asks for the end, and what the work waits for does not come."""


def begin() -> None:
    """Let each of the signals end the process with a sentence. Call it once, at the start of a command."""
    _open_closed_streams()
    _terminals.extend(number for number in (1, 2) if os.isatty(number))
    for number in _wanted():
        signal.signal(number, _end)


@contextlib.contextmanager
def noticed(lost: str) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether one of the signals has arrived. Then restore the former handlers.

    A Ctrl-C after another signal interrupts at once: it raises KeyboardInterrupt. `lost` says what is lost by this.
    """

    def note(number: int, frame: FrameType | None) -> None:
        if _received and number == signal.SIGINT:
            raise KeyboardInterrupt(f"stopped at once by a second signal, SIGINT: {lost}")
        _received.append(number)
        _leave_closed_terminal()

    _received.clear()
    before = {number: signal.signal(number, note) for number in _wanted()}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requested() -> bool:
    """Return whether a signal has arrived that `noticed` has noticed. Any thread may ask."""
    return bool(_received)


def abandon_threads() -> None:
    """Let the process end without a wait for its threads, because one of them waits for what may never come."""
    global _abandoned
    _abandoned = True


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Let each of the signals raise KeyboardInterrupt inside, for work that removes its unfinished files."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        _leave_closed_terminal()
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")

    before = {number: signal.signal(number, interrupt) for number in _wanted()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def default_actions() -> Iterator[None]:
    """Let the signals kill the process, while it waits in native code, where Python would not see them."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in _wanted()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(main: Callable[[], int], mistake: int = 1) -> NoReturn:
    """Run a command and end the process with its exit code. `mistake` is that of an error of the user.

    A file that cannot be read or written gets a sentence, wherever it was. So does an output that cannot be written. An
    error that nobody foresaw is printed as two lines. Its traceback goes into a file for temporary files.
    """
    for name, lost in (("stdout", _refuse), ("stderr", _ignore)):
        with contextlib.suppress(AttributeError):  # a stream of somebody else's
            setattr(sys, name, _Output(getattr(sys, name), lost))
    try:
        code = main()
    except KeyboardInterrupt as error:
        _say(str(error) or "stopped by SIGINT")
        os._exit(EXIT)  # without a wait for the threads, which may be the reason for the hurry
    except OutputError as error:
        code = _without_output(error)
    except Exception as error:
        if isinstance(error, OSError) and isinstance(error.filename, str):
            _say(f"error: {error.filename}: cannot be read or written ({error.strerror or error})")
            code = mistake
        else:
            _say(f"error: nobody foresaw this: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
            _say(f"please report it, with the traceback in {_kept_traceback()}")
            code = 1
    try:
        sys.stdout.flush()
    except OutputError as error:
        code = code or _without_output(error)
    if _abandoned:
        os._exit(code)
    sys.exit(code)


class OutputError(Exception):
    """The standard output cannot be written. It is no OSError, which commands take for one of their own files."""


class _Output(io.TextIOWrapper):
    """A standard stream that takes all texts, and gives its errors to `lost`."""

    def __init__(self, stream: io.TextIOWrapper, lost: Callable[[OSError], None]) -> None:
        # Names of files may hold bytes that are no text.
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)
        self._former = stream  # its end would close the buffer
        self._lost = lost

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lost(error)


def _refuse(error: OSError) -> NoReturn:
    raise OutputError(error.strerror or str(error)) from error


def _ignore(error: OSError) -> None:
    """There is no place left to say it."""


def _without_output(error: OutputError) -> int:
    """Let the output lead nowhere from now on, and return the exit code. Whoever closed it knows why."""
    _leave(1)
    if not isinstance(error.__cause__, BrokenPipeError):
        _say(f"error: the output cannot be written ({error})")
    return 1


def leave_closed_output() -> None:
    """Write the standard output to nowhere from now on, because whoever read it has gone."""
    _leave(1)


def _open_closed_streams() -> None:
    """Let standard streams that are closed, as by `>&-`, lead nowhere.

    Otherwise, Python has no stream to print to, and the next file that is opened takes the place of the output.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the system takes the lowest number that is free
        os.set_inheritable(number, True)
        stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115  it stays open
        name = ("stdin", "stdout", "stderr")[number]
        for of_python in (name, f"__{name}__"):
            setattr(sys, of_python, stream)
    os.close(number)


def _wanted() -> list[signal.Signals]:
    """Return the signals that are not ignored. `nohup` lets a process ignore SIGHUP, and it should stay so.

    SIGINT and SIGTERM are never ignored: shells let background processes ignore SIGINT, but somebody who sends it to
    one means it.
    """
    always = (signal.SIGINT, signal.SIGTERM)
    return [number for number in SIGNALS if number in always or signal.getsignal(number) != signal.SIG_IGN]


def _end(number: int, frame: FrameType | None) -> None:
    _leave_closed_terminal()
    _say(f"stopped by {signal.Signals(number).name}; the same command starts again, and train goes on with --resume")
    os._exit(EXIT)


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        say_error(sentence)


def _leave_closed_terminal() -> None:
    """Write to nowhere instead of a terminal that was closed. Otherwise each line would be an error."""
    for number in _terminals:
        if not os.isatty(number):
            _leave(number)


def _leave(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _kept_traceback() -> str:
    """Write the traceback of the present error to a new file and return its path. Print it if it cannot be written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="vologan_fast-", suffix=".txt", errors="backslashreplace", delete=False
        ) as file:
            file.write(f"{' '.join(sys.orig_argv)}\n\n{traceback.format_exc()}")
        return file.name
    except OSError:
        traceback.print_exc()
        return "the lines above"
