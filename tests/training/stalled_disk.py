"""A disk that stalls, for one process: opening its files waits without end, once the disk has been told to stall.

A library is loaded before all others, and a FIFO that nobody writes stands in for the disk. So Python and native code
wait in the kernel, as they do for a file system whose server has gone.
"""

import os
import shutil
import subprocess

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void stall(const char* path) {
  const char *files = getenv("STALLED_FILES"), *fifo = getenv("STALLED_DISK");
  if (files && fifo && strstr(path, files) && access(fifo, F_OK) == 0) {
    int (*real)(const char*, int, ...) = dlsym(RTLD_NEXT, "open");
    while (1) close(real(fifo, O_RDONLY));
  }
}

#define OPEN(name)                                             \
  int name(const char* path, int flags, ...) {                 \
    stall(path);                                               \
    va_list more;                                              \
    va_start(more, flags);                                     \
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0; \
    va_end(more);                                              \
    int (*real)(const char*, int, ...) = dlsym(RTLD_NEXT, #name); \
    return real(path, flags, mode);                            \
  }
OPEN(open)
OPEN(open64)
"""


class StalledDisk:
    """The disk of the files whose paths hold `files`. Give `environment` to the process."""

    def __init__(self, folder, files):
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        library, source, self._fifo = folder / "stall.so", folder / "stall.c", folder / "disk"
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "STALLED_FILES": str(files), "STALLED_DISK": str(self._fifo)}

    def stall(self):
        os.mkfifo(self._fifo)
