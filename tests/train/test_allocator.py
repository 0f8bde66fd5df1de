"""Freed memory is kept for the next step."""

import subprocess
import sys

PROGRAM = """
import ctypes, resource, sys
from ssljax.train.allocator import keep_freed_memory
if sys.argv[1] == 'kept' and not keep_freed_memory():
    sys.exit('no glibc')
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(20):
    block = libc.malloc(2**26)
    libc.memset(block, 1, 2**26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(mode):
    done = subprocess.run([sys.executable, '-c', PROGRAM, mode], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_block_allocated_again_is_not_paged_in_again():
    # 64 MiB are 16,384 pages; without it, each of the 20 rounds pays for all of them.
    assert faults('kept') < faults('as it is') / 4
