import subprocess
import sys

CODE = """
import ctypes, resource
from electra_dist.runtime.memory import keep_freed_memory
assert keep_freed_memory() == hasattr(ctypes.CDLL(None), "mallopt")
import numpy
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    numpy.ones(12_000_000)
print(faults() - before)
"""


def test_large_memory_is_given_out_again_without_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 1000  # 96 MB are 23,400 pages


MORE_THAN_AN_INT_HOLDS = """
from electra_dist.runtime.memory import keep_freed_memory
keep_freed_memory()
import numpy
def num_pages():
    return int(open("/proc/self/statm").read().split()[0])
values = numpy.empty(2**31 + 2**20, dtype=numpy.uint8)
before = num_pages()
del values
print(before - num_pages())
"""


def test_more_than_two_gigabytes_freed_at_once_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MORE_THAN_AN_INT_HOLDS], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) <= 0
