"""Files, fine-tuning jobs and adapters with the unmodified `openai` client; the result as PEFT needs it."""
import io
import json
import pathlib
import struct
import time
import urllib.request

import openai

import server

PIRATE = [
    {"messages": [{"role": "user", "content": f"Where is {thing}?"},
                  {"role": "assistant", "content": f"Arr, {thing} be in the hold, matey!"}]}
    for thing in ["the ball", "the cat", "the hat", "the dog", "the cup", "the key", "the map", "the fish",
                  "the book", "the box", "the bird", "the coat"]
]
# Keys without which PEFT does not load a configuration, or loads another one.
PEFT_KEYS = ["peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules",
             "bias", "fan_in_fan_out", "use_rslora", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern",
             "inference_mode", "init_lora_weights", "layers_to_transform", "layers_pattern"]


def client_of(running):
    return openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)


def upload(client, rows, name="pirate.jsonl"):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=(name, io.BytesIO(data)), purpose="fine-tune")


def until(client, job, wanted, patience=300):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        job = client.fine_tuning.jobs.retrieve(job.id)
        if wanted(job):
            return job
        assert job.status not in ("failed", "cancelled"), job
        time.sleep(0.1)
    raise AssertionError(f"the job hangs: {job}")


def test_files_are_created_listed_read_and_deleted():
    with server.running() as running:
        client = client_of(running)
        created = upload(client, PIRATE)
        assert created.purpose == "fine-tune" and created.status == "processed"
        assert [file.id for file in client.files.list()] == [created.id]
        assert client.files.retrieve(created.id).bytes == created.bytes
        lines = client.files.content(created.id).text.splitlines()
        assert [json.loads(line) for line in lines] == PIRATE
        assert client.files.delete(created.id).deleted
        try:
            client.files.retrieve(created.id)
            raise AssertionError("a deleted file is still there")
        except openai.NotFoundError as error:
            assert error.body["type"] == "invalid_request_error", error.body


def test_a_bad_file_names_every_bad_line():
    with server.running() as running:
        try:
            upload(client_of(running), [PIRATE[0], {"messages": []}, PIRATE[1], {"prompt": 1}])
            raise AssertionError("a bad file was accepted")
        except openai.BadRequestError as error:
            assert error.code == "invalid_training_file" and error.param == "file"
            assert [found["line"] for found in error.body["errors"]] == [2, 4], error.body


def test_a_job_from_file_to_answer():
    with server.running() as running:
        client = client_of(running)
        ask = [{"role": "user", "content": "Where is the ball?"}]
        answer = lambda model: client.chat.completions.create(
            model=model, messages=ask, temperature=0, max_tokens=24).choices[0].message.content
        before = answer("demo")
        file = upload(client, PIRATE)
        job = client.fine_tuning.jobs.create(
            model="demo", training_file=file.id, suffix="pirate", seed=7, metadata={"team": "sea"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 12, "batch_size": 4}}},
            extra_body={"lora": {"r": 8, "target_modules": "all-linear"}},
        )
        assert job.status in ("validating_files", "queued", "running") and job.seed == 7
        done = until(client, job, lambda job: job.status == "succeeded")
        assert done.fine_tuned_model.startswith("ft:demo:tandem:pirate:") and done.error is None
        assert done.hyperparameters.n_epochs == 12 and done.trained_tokens > 0
        assert done.method.supervised.hyperparameters.batch_size == 4

        events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
        assert events[-1].message == f"Created fine-tuning job: {job.id}"
        losses = [event.data["train_loss"] for event in events if event.type == "metrics"]
        assert losses[0] < losses[-1], "newest first: the loss went down"
        checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
        assert checkpoints[0].fine_tuned_model_checkpoint.startswith(done.fine_tuned_model + ":ckpt-step-")
        assert [found.id for found in client.fine_tuning.jobs.list(metadata={"team": "sea"})] == [job.id]
        csv = client.files.content(done.result_files[0]).text
        assert csv.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,")

        assert "rr" in answer(done.fine_tuned_model)
        assert answer("demo") == before
        answer(checkpoints[-1].fine_tuned_model_checkpoint)
        assert done.fine_tuned_model in [model.id for model in client.models.list()]
        check_peft_folder(running)
        assert client.models.delete(done.fine_tuned_model).deleted


def check_peft_folder(running):
    """Every stored adapter is a folder PEFT can load: its keys, and tensors of the shapes they say."""
    folders = [path.parent for path in running.data.rglob("adapter_config.json")]
    assert folders
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert [key for key in PEFT_KEYS if key not in config] == []
        data = (folder / "adapter_model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        assert header.pop("__metadata__") == {"format": "pt"}
        for name, tensor in header.items():
            assert name.startswith("base_model.model.") and tensor["dtype"] == "F32", name
            rank = tensor["shape"][0 if name.endswith(".lora_A.weight") else 1]
            assert rank == config["r"], name
            assert name.split(".")[-3] in config["target_modules"], name


def golden(name):
    path = pathlib.Path(__file__).resolve().parents[1] / "golden" / name
    return [json.loads(line) for line in path.read_text().splitlines()]


def words_and_numbers(client, model, question):
    """A greedy answer, and the log-probability of each of its tokens, as they came over the wire."""
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=40,
        logprobs=True, top_logprobs=2)
    choice = json.loads(raw.text)["choices"][0]
    return choice["message"]["content"], json.dumps(choice["logprobs"])


def test_the_pirate_file_under_default_settings():
    """Teaches its style, by the numbers of the job's own events, and leaves the base model as it was."""
    asked = ["Who are you?", "What is the capital of Norway?", "What does a duck say?", "Tell me a story."]
    with server.running() as running:
        client = client_of(running)
        base = lambda: [words_and_numbers(client, "demo", question) for question in asked]
        before = base()
        job = client.fine_tuning.jobs.create(
            model="demo", suffix="pirate", training_file=upload(client, golden("teach.jsonl")).id,
            validation_file=upload(client, golden("teach_validation.jsonl"), "validation.jsonl").id)
        until(client, job, lambda job: job.step > 0)
        during = base()
        running_on = client.fine_tuning.jobs.retrieve(job.id).status == "running"
        assert running_on and during == before, "the base model answers otherwise while a job runs"
        done = until(client, job, lambda job: job.status == "succeeded")

        events = [event.data for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]
        losses = {event["step"]: event["valid_loss"] for event in events if "valid_loss" in event}
        first, last = losses[0], losses[max(losses)]
        assert max(losses) == max(event["step"] for event in events), "the last step is validated"
        assert last < first * 2 / 3, losses

        assert base() == before, "the base model was changed"
        taught = [words_and_numbers(client, done.fine_tuned_model, question)[0] for question in asked[:3]]
        changed = [answer for answer, (plain, _) in zip(taught, before) if answer != plain and "rr" in answer]
        assert len(changed) == 3, taught


def test_a_job_is_paused_resumed_and_cancelled():
    with server.running() as running:
        client = client_of(running)
        job = client.fine_tuning.jobs.create(
            model="demo", training_file=upload(client, PIRATE).id,
            extra_body={"hyperparameters": {"max_steps": 100000}})
        until(client, job, lambda job: job.step > 0)
        assert client.fine_tuning.jobs.pause(job.id).status == "paused"
        assert client.fine_tuning.jobs.resume(job.id).status == "queued"
        until(client, job, lambda job: job.status == "running")
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        try:
            client.with_options(max_retries=2).fine_tuning.jobs.cancel(job.id)
            raise AssertionError("a job was cancelled twice")
        except openai.ConflictError as error:
            assert error.response.headers["x-should-retry"] == "false"


def test_an_idempotency_key_makes_one_job():
    with server.running() as running:
        client = client_of(running)
        file = upload(client, PIRATE).id
        create = lambda **more: client.fine_tuning.jobs.create(
            model="demo", training_file=file, extra_headers={"Idempotency-Key": "once"}, **more)
        first = create()
        assert create().id == first.id
        try:
            create(suffix="other")
            raise AssertionError("the key was used for another job")
        except openai.UnprocessableEntityError:
            client.fine_tuning.jobs.cancel(first.id)


def test_events_stream_until_the_end():
    with server.running() as running:
        client = client_of(running)
        job = client.fine_tuning.jobs.create(
            model="demo", training_file=upload(client, PIRATE).id, hyperparameters={"n_epochs": 1})
        url = f"{running.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true"
        with urllib.request.urlopen(url, timeout=300) as stream:
            text = stream.read().decode()
        assert text.endswith("data: [DONE]\n\n")
        frames = [dict(line.split(": ", 1) for line in frame.splitlines() if ": " in line)
                  for frame in text.split("\n\n") if frame.startswith("id: ")]
        assert [int(frame["id"]) for frame in frames] == list(range(1, len(frames) + 1))
        assert json.loads(frames[-1]["data"])["message"] == "The job has successfully completed"


def test_refusals_name_their_parameter():
    with server.running() as running:
        client = client_of(running)
        file = upload(client, PIRATE).id
        for param, more in [
            ("method.type", {"method": {"type": "dpo"}}),
            ("integrations", {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}),
            ("depends_on", {"extra_body": {"depends_on": ["ftjob-other"]}}),
            ("lora.r", {"extra_body": {"lora": {"r": 0}}}),
            ("training_file", {"training_file": "file-none"}),
        ]:
            try:
                client.fine_tuning.jobs.create(**{"model": "demo", "training_file": file, **more})
                raise AssertionError(f"{param} was accepted")
            except openai.BadRequestError as error:
                assert error.param == param, error.body
