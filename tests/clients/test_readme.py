"""Runs the README's tour, every command in it, in one shell against a fresh server."""
import os
import pathlib
import re
import subprocess

import server

ROOT = pathlib.Path(__file__).resolve().parents[2]


def blocks_of(heading, kind="sh"):
    text = (ROOT / "README.md").read_text()
    section = text.split(heading, 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def plain(text):
    """Without what differs from run to run and machine to machine: ids, numbers, white space."""
    text = re.sub(r"\b[0-9a-f]{8,}\b|\d+(\.\d+)?", "#", text)
    return re.sub(r"\s+", " ", text)


def assert_printed(shown, printed):
    """What the README shows is in the output, in this order; `…` stands for anything."""
    at, printed = 0, plain(printed)
    for part in (plain(part).strip() for part in shown.split("…")):
        found = printed.find(part, at)
        assert found >= 0, f"the tour shows {part!r}, and this was printed:\n{printed[-6000:]}"
        at = found + len(part)


def test_the_tour_works_as_written():
    blocks = blocks_of("## The tour")
    shown = blocks_of("## The tour", "text")
    assert len(blocks) >= 5 and len(shown) >= 4, "the tour has lost its commands"
    with server.running() as running:
        script = "set -euo pipefail\n" + "\n".join(blocks).replace("http://127.0.0.1:8080", running.url)
        script = script.replace("localhost:8080", f"127.0.0.1:{running.port}")
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{running.log.read_text()[-3000:]}"
        assert_printed("…".join(shown), done.stdout)
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
