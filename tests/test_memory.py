"""A process starts again for huge pages, once, and only where they are for those who ask."""

import os
import subprocess
import sys

import pytest

from jaxmodel import memory

HUGE = "glibc.malloc.hugetlb=1"


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What `use_huge_pages` starts, in a system where it helps."""
    found = []
    monkeypatch.setattr(os, "execv", lambda *args: found.append(args))
    monkeypatch.setattr(os, "confstr_names", {"CS_GNU_LIBC_VERSION": 2})
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "recipes.train", "--train.steps=3"])
    monkeypatch.setattr(memory, "SWITCH", tmp_path / "enabled")
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    memory.SWITCH.write_text("always [madvise] never\n")
    return found


def test_the_same_command_starts_again_with_huge_pages(started):
    memory.use_huge_pages()
    assert started == [(sys.executable, [sys.executable, "-X", "dev", "-m", "recipes.train", "--train.steps=3"])]
    assert os.environ[memory.VARIABLE] == HUGE
    memory.use_huge_pages()
    assert len(started) == 1


def test_other_tunables_are_kept(started, monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, "glibc.malloc.arena_max=2")
    memory.use_huge_pages()
    assert started and os.environ[memory.VARIABLE] == f"glibc.malloc.arena_max=2:{HUGE}"


@pytest.mark.parametrize("switch", ["[always] madvise never", "always madvise [never]", None])
def test_nothing_starts_where_linux_decides_for_all(started, switch):
    memory.SWITCH.unlink() if switch is None else memory.SWITCH.write_text(switch)
    memory.use_huge_pages()
    assert not started


@pytest.mark.parametrize("library", ["glibc 2.34", "musl 1.2", "", None])
def test_nothing_starts_with_a_library_that_cannot(started, monkeypatch, library):
    monkeypatch.setattr(os, "confstr", lambda _: library)
    memory.use_huge_pages()
    assert not started


def test_whoever_wants_small_pages_keeps_them(started, monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, "glibc.malloc.hugetlb=0")
    memory.use_huge_pages()
    assert not started and os.environ[memory.VARIABLE] == "glibc.malloc.hugetlb=0"


def test_nothing_is_lost_where_no_process_may_be_started(started, monkeypatch):
    def forbidden(*args):
        raise PermissionError

    monkeypatch.setattr(os, "execv", forbidden)
    memory.use_huge_pages()
    assert not started


def test_nothing_starts_where_linux_may_not_be_asked(started, monkeypatch):
    def forbidden(*args):
        raise PermissionError

    monkeypatch.setattr(type(memory.SWITCH), "read_text", forbidden)
    memory.use_huge_pages()
    assert not started and memory.VARIABLE not in os.environ


def test_a_real_process_ends_as_it_would_have():
    program = (
        "import os, sys; from jaxmodel.memory import *; use_huge_pages(); print(sys.argv, os.getpid()); sys.exit(7)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, "a b"], stdout=subprocess.PIPE, text=True)
    said, _ = child.communicate()
    assert (said, child.returncode) == (f"['-c', 'a b'] {child.pid}\n", 7)
