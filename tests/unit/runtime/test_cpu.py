import subprocess
import sys

CODE = """
import threading
import torch
from electra_dist.runtime.cpu import compute_in_this_thread
compute_in_this_thread(2)
seen = []
def ask():
    torch.ones(100_000).add_(1.0)
    seen.append(torch.get_num_threads())
other = threading.Thread(target=ask)
other.start()
other.join()
torch.ones(100_000).add_(1.0)
print(torch.get_num_threads(), *seen)
"""


def test_the_calling_thread_alone_gets_the_threads() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "1"]
