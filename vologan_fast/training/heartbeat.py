"""Signs of life between the ranks of a run, so that one that is stopped or hangs is named, and ends the run.

A thread of each rank writes a growing number into torchrun's store every second, whatever its main thread does. Rank 0
looks at the numbers of all other ranks, and they look at that of rank 0. A rank is silent without a new number for
SILENT_AFTER seconds, and named after NAMED_AFTER seconds. After LOST_AFTER seconds it is lost. Then a rank that waits
for it gives up. One that waits in a library, where it cannot, is ended by this thread EXIT_AFTER seconds later.

Seconds are counted by looks. So a process that was stopped itself does not take this time for a silence of the others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import torch.distributed as dist

from vologan_fast.words import say_error

EVERY = 1.0
"""Seconds between two looks."""
SILENT_AFTER = 4.0
NAMED_AFTER = 30.0
LOST_AFTER = 300.0
EXIT_AFTER = 60.0


class Heartbeat:
    """The thread of one rank. It runs until `stop`."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank = store, rank
        self._silence = dict.fromkeys(range(1, size) if rank == 0 else range(1), 0.0)
        """Seconds since the last new number of each rank that this one looks at."""
        self._seen: dict[int, str] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="vologan-heartbeat", daemon=True).start()

    def silent(self) -> str | None:
        """Return a part of a sentence if a rank is silent now."""
        return self._sentence(SILENT_AFTER)

    def lost(self) -> str | None:
        """Return a part of a sentence if a rank is lost."""
        return self._sentence(LOST_AFTER)

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        number = 0
        named: set[int] = set()
        with contextlib.suppress(RuntimeError):  # the store has ended, and with it the run
            while not self._stopped.wait(EVERY):
                number += 1
                self._store.set(f"alive/{self._rank}", f"{socket.gethostname()} {number}")
                self._look()
                for rank, seconds in self._silence.items():
                    if seconds >= NAMED_AFTER and rank not in named:
                        named.add(rank)
                        self._say(f"{self._silent_rank(rank)}; the run ends after {LOST_AFTER:g} s of this")
                    if seconds == 0 and rank in named:
                        named.remove(rank)
                        self._say(f"rank {rank} answers again")
                if max(self._silence.values()) >= LOST_AFTER + EXIT_AFTER:
                    self._say(f"error: {self.lost()}; the steps since the last checkpoint are lost")
                    os._exit(1)

    def _look(self) -> None:
        for rank in self._silence:
            key = f"alive/{rank}"
            found = self._store.get(key).decode() if self._store.check([key]) else ""
            self._silence[rank] = 0.0 if self._seen.get(rank) != found else self._silence[rank] + EVERY
            self._seen[rank] = found

    def _sentence(self, limit: float) -> str | None:
        return next((self._silent_rank(rank) for rank, of in self._silence.items() if of >= limit), None)

    def _silent_rank(self, rank: int) -> str:
        host = self._seen.get(rank, "").rpartition(" ")[0]
        where = f" on {host}" if host else ""
        return f"rank {rank}{where} has not answered for {self._silence[rank]:.0f} s: is it stopped, or its machine?"

    def _say(self, sentence: str) -> None:
        if self._rank <= 1:  # the others see the same
            say_error(sentence)
