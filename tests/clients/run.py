"""Runs every `test_*` function of the `test_*.py` files beside this one: run.py BINARY [NAME …]."""
import importlib
import os
import pathlib
import sys
import time
import traceback


def main():
    os.environ["TANDEM_BINARY"] = str(pathlib.Path(sys.argv[1]).resolve())
    here = pathlib.Path(__file__).parent
    sys.path.insert(0, str(here))
    wanted = sys.argv[2:]
    failed = 0
    for file in sorted(here.glob("test_*.py")):
        module = importlib.import_module(file.stem)
        for name in [name for name in vars(module) if name.startswith("test_")]:
            label = f"{file.stem}::{name}"
            if wanted and not any(word in label for word in wanted):
                continue
            start = time.monotonic()
            try:
                getattr(module, name)()
                print(f"ok    {label}  ({time.monotonic() - start:.1f} s)", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL  {label}\n{traceback.format_exc()}", flush=True)
    sys.exit(f"{failed} failed" if failed else 0)


if __name__ == "__main__":
    main()
