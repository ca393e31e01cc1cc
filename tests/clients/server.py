"""Starts the real binary for a test: a free port, a data folder of its own, its output in a file."""
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

BINARY = os.environ.get("TANDEM_BINARY", "target/release/tandem")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One `tandem serve`; `url` once it is ready."""

    def __init__(self, data, *options, env=None, port=None):
        self.data = pathlib.Path(data)
        self.data.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = self.data.with_suffix(".log")
        command = [BINARY, "serve", "--listen", f"127.0.0.1:{self.port}", "--data", str(self.data), *options]
        self.process = subprocess.Popen(
            command, stdout=open(self.log, "ab"), stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )

    def wait_until_ready(self, patience=60.0):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                with urllib.request.urlopen(self.url + "/health/ready", timeout=2) as answer:
                    if answer.status == 200:
                        return self
            time.sleep(0.05)
        raise RuntimeError(f"the server was not ready in {patience} s:\n{self.log.read_text()}")

    def kill(self):
        """As the power goes: no chance to clean up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, patience=60.0):
        """As an operator stops it; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=patience)


@contextlib.contextmanager
def running(*options, data=None, env=None):
    """A ready server, killed at the end whatever happens."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(data or pathlib.Path(folder) / "data", *options, env=env)
        try:
            yield server.wait_until_ready()
        finally:
            if server.process.poll() is None:
                server.kill()


def request(url, body=None, method=None, headers=None):
    """(status, parsed JSON or text) of one plain HTTP call."""
    data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    call = urllib.request.Request(url, data=data, method=method or ("POST" if data is not None else "GET"))
    if isinstance(body, (dict, list)):
        call.add_header("Content-Type", "application/json")
    for name, value in (headers or {}).items():
        call.add_header(name, value)
    try:
        with urllib.request.urlopen(call, timeout=120) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text
