"""Runs the README's tour, every command in it, in one shell against a fresh server."""
import pathlib
import re
import subprocess

import server

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_tour_works_as_written():
    text = (ROOT / "README.md").read_text()
    tour = text.split("## The tour", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```sh\n(.*?)```", tour, re.DOTALL)
    assert len(blocks) >= 5, "the tour has lost its commands"
    with server.running() as running:
        script = "set -euo pipefail\n" + "\n".join(blocks).replace("http://127.0.0.1:8080", running.url)
        script = script.replace("localhost:8080", f"127.0.0.1:{running.port}")
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{running.log.read_text()[-3000:]}"
        assert '"error": {' not in done.stdout and '"error":{"message"' not in done.stdout, done.stdout[-3000:]
