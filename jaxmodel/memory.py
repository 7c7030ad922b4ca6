"""How the operating system gives a process its memory."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def use_huge_pages() -> None:
    """Start this program again with an allocator that asks for huge pages, where that helps; to be called first.

    XLA on CPU asks for the memory of a training step anew each time; in pages of 4 KiB, a tenth to a sixth of the step
    goes by until all of them are there. Returns where nothing is to be gained: Linux gives huge pages to everyone or
    to no one, the C library is not glibc 2.35 or newer, or GLIBC_TUNABLES speaks of them already
    (`glibc.malloc.hugetlb=0` in that environment variable keeps the small ones).
    """
    said = os.environ.get(VARIABLE, "")
    with contextlib.suppress(OSError):  # where a sandbox lets nothing be read or started, small pages do
        if TUNABLE not in said and sys.executable and _helps():
            os.environ[VARIABLE] = ":".join([*filter(None, [said]), f"{TUNABLE}=1"])
            sys.stdout.flush()
            sys.stderr.flush()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _helps() -> bool:
    """Whether huge pages are for those who ask, and this C library can."""
    names = getattr(os, "confstr_names", {})  # none on Windows
    library = (os.confstr("CS_GNU_LIBC_VERSION") or "") if "CS_GNU_LIBC_VERSION" in names else ""
    name, _, version = library.partition(" ")
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return False
    return SWITCH.is_file() and "[madvise]" in SWITCH.read_text()
