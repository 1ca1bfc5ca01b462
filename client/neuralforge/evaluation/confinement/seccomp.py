"""A filter of system calls: those that a Python program without network and children needs, and no other.

What is not on the list is answered as by a kernel that does not have it. So there are no sockets, no threads and no
children, no tracing, no mounts, no new folders, no changes of owner, mode or time, and signals only to oneself.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from .kernel import MACHINE, prctl

_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_CALLS = {
    "x86_64": """
        read=0 write=1 open=2 openat=257 openat2=437 close=3 close_range=436 fstat=5 stat=4 lstat=6 newfstatat=262
        statx=332 statfs=137 fstatfs=138 lseek=8 mmap=9 mprotect=10 munmap=11 brk=12 mremap=25 madvise=28 mincore=27
        msync=26 rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 rt_sigpending=127 rt_sigsuspend=130
        rt_sigtimedwait=128 sigaltstack=131 ioctl=16 pread64=17 pwrite64=18 preadv=295 pwritev=296 readv=19 writev=20
        access=21 faccessat=269 faccessat2=439 pipe=22 pipe2=293 select=23 pselect6=270 poll=7 ppoll=271 dup=32
        dup2=33 dup3=292 nanosleep=35 clock_nanosleep=230 clock_gettime=228 clock_getres=229 gettimeofday=96 time=201
        times=100 getitimer=36 setitimer=38 alarm=37 pause=34 getpid=39 getppid=110 gettid=186 getpgrp=111
        getpgid=121 getsid=124 getuid=102 geteuid=107 getgid=104 getegid=108 getresuid=118 getresgid=120
        getgroups=115 execve=59 exit=60 exit_group=231 uname=63 fcntl=72 flock=73 fsync=74 fdatasync=75 ftruncate=77
        fallocate=285 getcwd=79 chdir=80 fchdir=81 unlink=87 unlinkat=263 rename=82
        renameat=264 renameat2=316 link=86 linkat=265 symlink=88 symlinkat=266 readlink=89 readlinkat=267 umask=95
        getrlimit=97 setrlimit=160 prlimit64=302 getrusage=98 sysinfo=99 getdents64=217 arch_prctl=158
        set_tid_address=218 set_robust_list=273 rseq=334 futex=202 epoll_create1=291 epoll_create=213 epoll_ctl=233
        epoll_wait=232 epoll_pwait=281 eventfd2=290 sched_getaffinity=204 sched_yield=24 sched_getparam=143
        sched_getscheduler=145 getrandom=318 membarrier=324 wait4=61 waitid=247 copy_file_range=326 sendfile=40
        restart_syscall=219 fadvise64=221 getcpu=309 kill=62 tgkill=234 sync_file_range=277""",
    "aarch64": """
        read=63 write=64 openat=56 openat2=437 close=57 close_range=436 fstat=80 newfstatat=79 statx=291 statfs=43
        fstatfs=44 lseek=62 mmap=222 mprotect=226 munmap=215 brk=214 mremap=216 madvise=233 mincore=232 msync=227
        rt_sigaction=134 rt_sigprocmask=135 rt_sigreturn=139 rt_sigpending=136 rt_sigsuspend=133 rt_sigtimedwait=137
        sigaltstack=132 ioctl=29 pread64=67 pwrite64=68 preadv=69 pwritev=70 readv=65 writev=66 faccessat=48
        faccessat2=439 pipe2=59 pselect6=72 ppoll=73 dup=23 dup3=24 nanosleep=101 clock_nanosleep=115
        clock_gettime=113 clock_getres=114 gettimeofday=169 times=153 getitimer=102 setitimer=103 getpid=172
        getppid=173 gettid=178 getpgid=155 getsid=156 getuid=174 geteuid=175 getgid=176 getegid=177 getresuid=148
        getresgid=150 getgroups=158 execve=221 exit=93 exit_group=94 uname=160 fcntl=25 flock=32 fsync=82
        fdatasync=83 ftruncate=46 fallocate=47 getcwd=17 chdir=49 fchdir=50 unlinkat=35 renameat=38
        renameat2=276 linkat=37 symlinkat=36 readlinkat=78 umask=166 getrlimit=163 setrlimit=164 prlimit64=261
        getrusage=165 sysinfo=179 getdents64=61 set_tid_address=96 set_robust_list=99 rseq=293 futex=98
        epoll_create1=20 epoll_ctl=21 epoll_pwait=22 eventfd2=19 sched_getaffinity=123 sched_yield=124
        sched_getparam=121 sched_getscheduler=120 getrandom=278 membarrier=283 wait4=260 waitid=95
        copy_file_range=285 sendfile=71 restart_syscall=128 fadvise64=223 getcpu=168 kill=129 tgkill=131
        sync_file_range=84""",
}

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _FIRST, _FIRST_HIGH, _SECOND = 0, 4, 16, 20, 24  # offsets in struct seccomp_data, little-endian
_SIGNALS_OF_FILES = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX send any signal to any process


def calls(machine: str) -> dict[str, int]:
    """The system calls that are let through, by name."""
    return {name: int(number) for name, _, number in (word.partition("=") for word in _CALLS[machine].split())}


def program(machine: str, process: int) -> bytes:
    """The filter, for a process of that number."""
    numbers = calls(machine)
    own, fcntl = (numbers.pop("kill"), numbers.pop("tgkill")), numbers.pop("fcntl")
    limits = numbers.pop("prlimit64")
    denied, forbidden = _FAIL | errno.ENOSYS, _FAIL | errno.EPERM
    steps = [
        *(_op(_LOAD, _ARCH), _op(_EQUAL, _ARCHITECTURE[machine], 1, 0), _op(_RETURN, _KILL)),
        _op(_LOAD, _NUMBER),
    ]
    for number in sorted(numbers.values()):  # x86's other tables have numbers of their own, none of them here
        steps += [_op(_EQUAL, number, 0, 1), _op(_RETURN, _ALLOW)]
    for number, wanted in ((own[0], process), (own[1], process), (limits, 0)):
        steps += [
            _op(_EQUAL, number, 0, 6),
            *(_op(_LOAD, _FIRST_HIGH), _op(_EQUAL, 0, 0, 3), _op(_LOAD, _FIRST), _op(_EQUAL, wanted, 0, 1)),
            *(_op(_RETURN, _ALLOW), _op(_RETURN, forbidden)),
        ]
    steps += [_op(_EQUAL, fcntl, 0, len(_SIGNALS_OF_FILES) + 3), _op(_LOAD, _SECOND)]
    steps += [_op(_EQUAL, command, len(_SIGNALS_OF_FILES) - i, 0) for i, command in enumerate(_SIGNALS_OF_FILES)]
    steps += [_op(_RETURN, _ALLOW), _op(_RETURN, forbidden), _op(_RETURN, denied)]
    return b"".join(steps)


def install() -> None:
    """Filter the calls of this process from here on, for good; raises OSError."""
    import os

    code = program(MACHINE, os.getpid())
    held = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.cast(ctypes.create_string_buffer(head, len(head)), ctypes.c_void_p))


def _op(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
