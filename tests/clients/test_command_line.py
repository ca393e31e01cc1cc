"""The command line: wrong options, unusable models, folders and ports in use, each one sentence."""
import pathlib
import socket
import subprocess
import tempfile

import server


def tandem(*args, env=None):
    import os
    done = subprocess.run([server.BINARY, *args], capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})
    return done.returncode, done.stdout, done.stderr


def refused(code, word, *args, env=None):
    got, _, error = tandem(*args, env=env)
    assert got == code, (args, got, error)
    assert word in error, (args, error)
    assert "panicked" not in error, error


def test_help_and_version():
    code, out, _ = tandem("--help")
    assert code == 0 and "serve" in out and "train" in out
    assert tandem("--version")[0] == 0
    assert tandem("serve", "--help")[0] == 0


def test_wrong_options_are_usage_errors():
    refused(2, "--nonsense", "serve", "--nonsense")
    refused(2, "listen", "serve", "--listen", "nonsense")
    refused(2, "api-key", "serve", "--listen", "0.0.0.0:0")
    refused(2, "no such folder", "serve", "--model", "/nowhere/at/all")
    refused(2, "threads", env={"TANDEM_THREADS": "0"})


def test_an_unreadable_model_is_exit_code_78():
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "model"
        model.mkdir()
        (model / "config.json").write_text('{"model_type": "llama"}')
        refused(78, "model", "serve", "--model", str(model), "--data", folder + "/data", "--listen", "127.0.0.1:0")
        (model / "tokenizer.model").write_bytes(b"")
        refused(78, "tokenizer.json", "serve", "--model", str(model), "--data", folder + "/data", "--listen", "127.0.0.1:0")
        (model / "config.json").write_text("{")
        refused(78, "config.json", "serve", "--model", str(model), "--data", folder + "/data", "--listen", "127.0.0.1:0")


def test_a_bad_configuration_file_is_exit_code_78():
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tandem.toml"
        path.write_text("colour = 'red'")
        refused(78, "colour", "serve", "--config", str(path))
        refused(78, "cannot read", "serve", "--config", folder + "/absent.toml")


def test_a_port_and_a_data_folder_in_use_are_said():
    with server.running() as first:
        refused(1, "another server uses the folder", "serve", "--data", str(first.data), "--listen", "127.0.0.1:0")
        with socket.socket() as taken, tempfile.TemporaryDirectory() as folder:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            refused(1, str(port), "serve", "--data", folder, "--listen", f"127.0.0.1:{port}")


def test_a_stop_signal_ends_with_code_0():
    with server.running() as first:
        assert first.stop() == 0
