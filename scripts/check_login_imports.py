"""A login node has no torch: import all that it runs, with everything heavy forbidden.

import-linter reads imports; this one runs them, so a lazy import that is not lazy fails here (`make
check`).
"""

import subprocess
import sys
from pathlib import Path

LOGIN_PARTS = (
    "config",
    "launch",
    "cli",
    "commands",
    "errors.py",
    "checkpoint/layout.py",
)
FORBIDDEN = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "scipy",
    "sklearn",
    "tensorboard",
)
PROGRAM = """
import importlib, sys
forbidden, modules = sys.argv[1].split(","), sys.argv[2:]
sys.modules.update(dict.fromkeys(forbidden))  # None there makes `import NAME` an ImportError
for module in modules:
    importlib.import_module(module)
"""


def login_modules(root: Path) -> list[str]:
    """The dotted names of every module that a login node may import."""
    package = root / "electra_dist"
    files = []
    for part in LOGIN_PARTS:
        path = package / part
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path] * path.is_file()
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def main() -> int:
    """Import them; 1 with the traceback of the first that needs what a login node lacks."""
    root = Path(__file__).resolve().parent.parent
    modules = login_modules(root)
    command = [sys.executable, "-c", PROGRAM, ",".join(FORBIDDEN), *modules]
    code = subprocess.run(command, cwd=root, check=False).returncode
    if code == 0:
        print(f"{len(modules)} modules of a login node import nothing heavy")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
