"""kill -9 in the middle of a job: after a restart it goes on and ends with the very same weights."""
import atexit
import hashlib
import os
import pathlib
import random
import socket
import tempfile
import time
import uuid

import server

TEACH = pathlib.Path(__file__).resolve().parents[1] / "golden" / "teach.jsonl"
# Each costs a second or so; more in an idle hour: `TANDEM_KILLS=200 TANDEM_PAUSES=20`.
KILLS = int(os.environ.get("TANDEM_KILLS", "8"))
PAUSES = int(os.environ.get("TANDEM_PAUSES", "3"))
CHECKPOINT_STEPS = 3


def upload(url, name="teach.jsonl"):
    border = uuid.uuid4().hex
    body = (
        f'--{border}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    ).encode() + TEACH.read_bytes() + f"\r\n--{border}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={border}"}
    status, file = server.request(url + "/v1/files", body, headers=headers)
    assert status == 200, file
    return file["id"]


def create_job(url, steps):
    hyperparameters = {"max_steps": steps, "batch_size": 4, "checkpoint_steps": CHECKPOINT_STEPS}
    body = {
        "model": "demo",
        "training_file": upload(url),
        "seed": 7,
        "suffix": "crash",
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "lora": {"dropout": 0.1},
    }
    status, job = server.request(url + "/v1/fine_tuning/jobs", body)
    assert status == 200, job
    return job["id"]


def job_of(url, job):
    status, found = server.request(f"{url}/v1/fine_tuning/jobs/{job}")
    assert status == 200, found
    return found


def checkpoints(url, job):
    status, found = server.request(f"{url}/v1/fine_tuning/jobs/{job}/checkpoints?limit=100")
    assert status == 200, found
    return found["data"]


def newest_step(url, job):
    assert job_of(url, job)["status"] not in ("failed", "cancelled"), job_of(url, job)
    return max((checkpoint["step_number"] for checkpoint in checkpoints(url, job)), default=0)


def wait(condition, what, patience=240.0):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {patience} s for {what}")


def finished(url, job):
    def condition():
        found = job_of(url, job)
        assert found["status"] not in ("failed", "cancelled"), found
        return found if found["status"] == "succeeded" else None

    return wait(condition, "the job to succeed")


def weights(data):
    """The hash of every adapter in a data folder, the checkpoints' among them."""
    files = sorted(data.rglob("adapter_model.safetensors"))
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def undisturbed(folder, steps):
    """The adapters of a job that nothing happens to."""
    calm = server.Server(pathlib.Path(folder) / "calm").wait_until_ready()
    finished(calm.url, create_job(calm.url, steps))
    assert calm.stop() == 0
    expected = weights(calm.data)
    assert expected
    return expected


def test_killed_jobs_end_with_the_same_weights():
    # A checkpoint for each kill, so that each falls into the job.
    steps = CHECKPOINT_STEPS * KILLS
    with tempfile.TemporaryDirectory() as folder:
        expected = undisturbed(folder, steps)
        data = pathlib.Path(folder) / "stormy"
        stormy = server.Server(data).wait_until_ready()
        atexit.register(lambda: stormy.process.poll() is None and stormy.kill())
        job = create_job(stormy.url, steps)
        dice = random.Random(1)
        for kill in range(KILLS):
            known = newest_step(stormy.url, job)
            wait(
                lambda: newest_step(stormy.url, job) > known or job_of(stormy.url, job)["status"] == "succeeded",
                f"a checkpoint before kill {kill}",
            )
            time.sleep(dice.uniform(0, 0.4))
            stormy.kill()
            stormy = server.Server(data).wait_until_ready()
        found = finished(stormy.url, job)
        # The adapter answers at once, under its name.
        status, answer = server.request(
            stormy.url + "/v1/completions",
            {"model": found["fine_tuned_model"], "prompt": "Hello", "max_tokens": 4},
        )
        assert status == 200, answer
        assert stormy.stop() == 0
        assert weights(data) == expected


def test_a_job_goes_through_rounds_of_pause_restart_and_resume():
    # So many that the last pause comes long before the end, however fast the machine.
    steps = 60 * PAUSES
    with tempfile.TemporaryDirectory() as folder:
        expected = undisturbed(folder, steps)
        data = pathlib.Path(folder) / "halting"
        halting = server.Server(data).wait_until_ready()
        atexit.register(lambda: halting.process.poll() is None and halting.kill())
        job = create_job(halting.url, steps)
        dice = random.Random(3)
        step = lambda: job_of(halting.url, job).get("step") or 0
        for turn in range(PAUSES):
            known = step()
            wait(lambda: step() > known, f"a step before pause {turn}")
            time.sleep(dice.uniform(0, 0.1))
            status, answer = server.request(f"{halting.url}/v1/fine_tuning/jobs/{job}/pause", b"")
            assert status == 200, answer
            # Sometimes the run has let go when the server ends, sometimes it has not.
            time.sleep(dice.uniform(0, 0.1))
            halting.kill() if turn % 2 else halting.stop()
            halting = server.Server(data).wait_until_ready()
            assert job_of(halting.url, job)["status"] == "paused", job_of(halting.url, job)
            status, answer = server.request(f"{halting.url}/v1/fine_tuning/jobs/{job}/resume", b"")
            assert status == 200, answer
        finished(halting.url, job)
        assert halting.stop() == 0
        # A pause leaves a checkpoint of its own beside those of the undisturbed job.
        assert expected <= weights(data)


def stored(data):
    """What lies in the store, the temporary files among it."""
    return [path for path in (data / "artifacts").rglob("*") if path.is_file()]


def half_an_upload(server):
    """A connection that has sent the first megabytes of a file and says that more will come."""
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="big.jsonl"\r\n\r\n'
    )
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(head.encode() + TEACH.read_bytes() * 300)
    return connection


def test_kills_during_uploads_leave_nothing():
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "data"
        running = server.Server(data).wait_until_ready()
        kept = upload(running.url)
        clean = sorted(stored(data))
        dice = random.Random(2)
        for _ in range(6):
            connection = half_an_upload(running)
            wait(lambda: len(stored(data)) > len(clean), "the half file")
            time.sleep(dice.uniform(0, 0.05))
            running.kill()
            connection.close()
            assert len(stored(data)) > len(clean), "the kill came too late to show anything"
            running = server.Server(data).wait_until_ready()
            assert sorted(stored(data)) == clean
            status, files = server.request(running.url + "/v1/files")
            assert status == 200 and [file["id"] for file in files["data"]] == [kept], files
        second = upload(running.url, "again.jsonl")
        status, files = server.request(running.url + "/v1/files")
        assert {file["id"] for file in files["data"]} == {kept, second}
        assert running.stop() == 0


def test_everything_survives_a_restart():
    with tempfile.TemporaryDirectory() as folder:
        first = server.Server(pathlib.Path(folder) / "data").wait_until_ready()
        job = create_job(first.url, 4 * CHECKPOINT_STEPS)
        name = finished(first.url, job)["fine_tuned_model"]
        ask = {"model": name, "prompt": "Once", "max_tokens": 8, "temperature": 0}
        before = server.request(first.url + "/v1/completions", ask)
        assert before[0] == 200, before
        first.kill()
        second = server.Server(pathlib.Path(folder) / "data").wait_until_ready()
        after = server.request(second.url + "/v1/completions", ask)
        assert after[0] == 200, after
        assert after[1]["choices"][0]["text"] == before[1]["choices"][0]["text"]
        assert len(checkpoints(second.url, job)) == 4
        second.stop()
