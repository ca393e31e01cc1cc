"""Runs the README's tour, every command in it, in one shell against a fresh server."""
import os
import pathlib
import re
import subprocess

import server

ROOT = pathlib.Path(__file__).resolve().parents[2]


def blocks_of(heading):
    text = (ROOT / "README.md").read_text()
    section = text.split(heading, 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def test_the_tour_works_as_written():
    blocks = blocks_of("## The tour")
    assert len(blocks) >= 5, "the tour has lost its commands"
    with server.running() as running:
        script = "set -euo pipefail\n" + "\n".join(blocks).replace("http://127.0.0.1:8080", running.url)
        script = script.replace("localhost:8080", f"127.0.0.1:{running.port}")
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{running.log.read_text()[-3000:]}"
        assert '"error": {' not in done.stdout and '"error":{"message"' not in done.stdout, done.stdout[-3000:]


def test_the_command_line_works_as_written():
    blocks = blocks_of("## From the command line")
    assert blocks, "the section has lost its commands"
    script = "set -euo pipefail\n" + "\n".join(blocks)
    with server.running() as running:
        env = {**os.environ, "TANDEM_URL": running.url}
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "succeeded" in done.stdout and "matey" in done.stdout, done.stdout[-3000:]
