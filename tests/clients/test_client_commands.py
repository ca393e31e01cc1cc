"""The command-line clients against a running server: each command, right and wrong input."""
import contextlib
import json
import os
import pathlib
import pty
import select
import subprocess
import tempfile
import threading
import time

import server

TEACH = str(pathlib.Path(__file__).resolve().parents[1] / "golden" / "teach.jsonl")
KEY = "a-key-of-sixteen-or-more"


def tandem(*args, url=None, stdin="", env=None):
    env = {**os.environ, "TANDEM_URL": url or "", **(env or {})}
    if not url:
        del env["TANDEM_URL"]
    return subprocess.run([server.BINARY, *args], input=stdin, capture_output=True, text=True, timeout=120, env=env)


def done(*args, **how):
    ran = tandem(*args, **how)
    assert ran.returncode == 0, (args, ran)
    assert "\x1b" not in ran.stdout, (args, ran.stdout)
    return ran.stdout


def refused(code, words, *args, **how):
    ran = tandem(*args, **how)
    assert ran.returncode == code, (args, ran)
    for word in [words] if isinstance(words, str) else words:
        assert word in ran.stderr, (args, word, ran.stderr)
    assert "panicked" not in ran.stderr, ran.stderr


def read(*args, url):
    return json.loads(done(*args, "--json", url=url))


def at_a_terminal(url, *args, talk=()):
    """What a person would see, who waits for each prompt of `talk` and then types."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(server.BINARY, [server.BINARY, *args], {**os.environ, "TANDEM_URL": url})
    seen, end, talk = b"", time.monotonic() + 60, list(talk)
    since = 0
    with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
        while time.monotonic() < end:
            if talk and talk[0][0] in seen[since:]:
                since = len(seen)
                os.write(terminal, talk.pop(0)[1])
            if select.select([terminal], [], [], 0.2)[0]:
                piece = os.read(terminal, 4096)
                if not piece:
                    break
                seen += piece
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen.decode()


def test_without_a_server_each_client_says_so():
    nobody = f"http://127.0.0.1:{server.free_port()}"
    for args in (["jobs", "list"], ["chat", "hi"], ["complete", "hi"], ["files", "list"], ["adapters", "list"],
                 ["jobs", "watch", "ftjob-1"], ["check", TEACH]):
        refused(1, ["no server answers at " + nobody, "tandem serve"], *args, url=nobody)
    refused(2, "https", "jobs", "list", url="https://127.0.0.1:1")
    refused(2, "http://HOST:PORT", "jobs", "list", url="nonsense")
    refused(2, "required", "jobs", "show", url=nobody)


def test_keys_are_asked_for_and_checked():
    with server.running("--api-key", KEY) as running:
        refused(1, "asks for a key", "jobs", "list", url=running.url)
        refused(1, "does not know this key", "jobs", "list", "--api-key", "another", url=running.url)
        done("jobs", "list", url=running.url, env={"TANDEM_API_KEY": KEY})


def test_questions_and_prompts():
    with server.running() as running:
        url = running.url
        streamed = done("chat", "What does the cow say?", "--temperature", "0", url=url)
        whole = read("chat", "What does the cow say?", "--temperature", "0", url=url)
        assert streamed == whole["choices"][0]["message"]["content"] + "\n" and "moo" in streamed
        assert done("chat", "--temperature", "0", url=url, stdin="What does the cow say?\n") == streamed
        streamed = done("complete", "Once", "--max-tokens", "8", "--seed", "3", url=url)
        whole = read("complete", "Once", "--max-tokens", "8", "--seed", "3", url=url)
        assert streamed == whole["choices"][0]["text"] + "\n"
        refused(1, ["`nope` does not exist", "--model"], "chat", "hi", "--model", "nope", url=url)
        refused(1, "temperature", "complete", "hi", "--temperature", "9", url=url)


def test_a_conversation_remembers_goes_on_after_a_refusal_and_ends():
    with server.running() as running:
        code, seen = at_a_terminal(running.url, "chat", "--temperature", "0", talk=[
            (b"> ", b"What does the cow say?\n"), (b"> ", b"/model nope\n"), (b"> ", b"hi\n"),
            (b"> ", b"/model demo\n"), (b"> ", b"/nonsense\n"), (b"> ", b"/reset\n"), (b"> ", b"\x04")])
        assert code == 0, seen
        for word in ["moo", "`nope` does not exist", "`/nonsense` is no command", "forgotten"]:
            assert word in seen, (word, seen)


def test_files():
    with server.running() as running:
        url = running.url
        assert "no files yet" in done("files", "list", url=url)
        file = done("files", "upload", TEACH, url=url).split()[0]
        assert file in done("files", "list", url=url)
        assert "8.9 kB" in done("files", "show", file, url=url)
        assert done("files", "content", file, url=url) == pathlib.Path(TEACH).read_text()
        with tempfile.TemporaryDirectory() as folder:
            done("files", "content", file, "--output", folder + "/out", url=url)
            assert pathlib.Path(folder, "out").read_text() == pathlib.Path(TEACH).read_text()
            refused(1, "cannot write", "files", "content", file, "--output", folder + "/no/out", url=url)
            refused(1, "cannot read", "files", "upload", folder, url=url)
        assert "deleted" in done("files", "delete", file, url=url)
        refused(1, ["does not exist", "tandem files list"], "files", "show", file, url=url)


def test_every_bad_line_is_told_and_nothing_is_left_behind():
    with server.running() as running, tempfile.TemporaryDirectory() as folder:
        bad = pathlib.Path(folder, "bad.jsonl")
        bad.write_text("".join('{"messages": []}\n' for _ in range(30)) + "{oops\n")
        lines = [f"line {line}, $" for line in range(1, 32)]
        for args in (["files", "upload"], ["jobs", "create"], ["check"]):
            refused(1, lines, *args, str(bad), url=running.url)
        refused(1, lines, "check", str(bad))
        refused(1, lines, "train", str(bad), "--out", folder + "/out")
        refused(1, "n_epochs", "jobs", "create", TEACH, "--epochs", "0", url=running.url)
        refused(2, "FIELD=VALUE", "jobs", "create", TEACH, "--set", "nonsense", url=running.url)
        report = read("check", TEACH, "--batch-size", "8", url=running.url)
        assert report["ok"] and report["hyperparameters"]["batch_size"] == 8
        again = json.loads(done("check", TEACH, "--batch-size", "8", "--json"))
        # The forecast is measured anew each time.
        assert report.pop("forecast") and again.pop("forecast") and report == again
        assert read("files", "list", url=running.url)["data"] == []


def test_a_job_from_file_to_answer():
    with server.running() as running:
        url = running.url
        out = done("jobs", "create", TEACH, "--max-steps", "6", "--suffix", "cli", "--set", "metadata.team=blue", "--watch", url=url)
        assert "step 6/6  loss" in out and "succeeded" in out, out
        job, = read("jobs", "list", url=url)["data"]
        assert job["metadata"] == {"team": "blue"} and job["fine_tuned_model"] in out
        assert job["id"] in done("jobs", "list", url=url)
        assert "checkpoint" in done("jobs", "show", job["id"], url=url)
        events = [json.loads(line) for line in done("jobs", "watch", job["id"], "--json", url=url).splitlines()]
        assert events[0]["object"] == "fine_tuning.job.event" and events[-1]["status"] == "succeeded"
        done("chat", "Who are you?", "--model", job["fine_tuned_model"], url=url)
        code, seen = at_a_terminal(url, "jobs", "create", TEACH, "--max-steps", "6", "--watch")
        assert code == 0 and "6/6  loss" in seen and "█" in seen, seen
        refused(1, ["does not exist", "tandem jobs list"], "jobs", "watch", "ftjob-nope", url=url)
        refused(1, "cannot read", "jobs", "create", "nowhere.jsonl", url=url)
        refused(1, "does not exist", "jobs", "create", "file-nope", url=url)


def test_a_job_is_paused_resumed_and_cancelled():
    with server.running() as running:
        url = running.url
        job = read("jobs", "create", TEACH, "--epochs", "50", url=url)["id"]
        assert "paused" in done("jobs", "pause", job, url=url)
        refused(1, "is paused", "jobs", "pause", job, url=url)
        assert "paused" not in done("jobs", "resume", job, url=url)
        assert "cancelled" in done("jobs", "cancel", job, url=url)
        refused(1, "is cancelled", "jobs", "watch", job, url=url)
        refused(1, "cannot be cancelled", "jobs", "cancel", job, url=url)


def test_watching_goes_on_after_a_restart_and_repeats_nothing():
    with tempfile.TemporaryDirectory() as folder:
        first = server.Server(pathlib.Path(folder) / "data").wait_until_ready()
        job = read("jobs", "create", TEACH, "--max-steps", "60", "--set", "hyperparameters.checkpoint_steps=5", url=first.url)["id"]
        command = [server.BINARY, "jobs", "watch", job, "--json", "--url", first.url]
        watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        lines, stepped = [], threading.Event()

        def collect():
            for line in watch.stdout:
                lines.append(json.loads(line))
                if (lines[-1].get("data") or {}).get("step") == 8:
                    stepped.set()

        reader = threading.Thread(target=collect)
        reader.start()
        assert stepped.wait(60), lines
        first.kill()
        second = server.Server(first.data, port=first.port)
        try:
            second.wait_until_ready()
            assert watch.wait(timeout=120) == 0, watch.stderr.read()
        finally:
            watch.kill()
            reader.join()
            second.kill()
        ids = [line["id"] for line in lines]
        assert len(ids) == len(set(ids)) and lines[-1]["status"] == "succeeded", ids
        assert max((line.get("data") or {}).get("step", 0) for line in lines[:-1]) == 60


def test_a_job_without_a_server_and_its_adapter_on_one():
    with server.running() as running, tempfile.TemporaryDirectory() as folder:
        url, out = running.url, folder + "/adapter"
        assert "holds the adapter" in done("train", TEACH, "--max-steps", "3", "--out", out)
        assert json.loads(pathlib.Path(out, "adapter_config.json").read_text())["peft_type"] == "LORA"
        refused(2, "not empty", "train", TEACH, "--out", out)
        refused(2, "cannot be used with", "train", TEACH, "--from-scratch")
        assert "can be named" in done("adapters", "add", "mine", out, url=url)
        assert "mine" in done("adapters", "list", url=url)
        assert "upload" in done("adapters", "show", "mine", url=url)
        done("complete", "Once", "--model", "mine", url=url)
        refused(1, "adapter_config.json", "adapters", "add", "other", folder, url=url)
        refused(1, "name", "adapters", "add", "demo", out, url=url)
        assert "deleted" in done("adapters", "delete", "mine", url=url)
        refused(1, ["does not exist", "tandem adapters list"], "adapters", "delete", "mine", url=url)
