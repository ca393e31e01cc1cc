"""The unmodified `openai` client: files, fine-tuning jobs from upload to use, and their errors."""
import atexit
import contextlib
import functools
import json
import time

import openai
import server

MODEL = "demo"


@functools.cache
def running():
    """One server for every test of this file."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(server.running())


@functools.cache
def client():
    return openai.OpenAI(base_url=running().url + "/v1", api_key="none", max_retries=0)


def lines(count=24):
    """Questions whose answers all end in the same unusual word."""
    things = ["cat", "dog", "boat", "tree", "star", "cake"]
    turns = [(f"Where is the {things[i % 6]} number {i}?", f"The {things[i % 6]} is here, arr!") for i in range(count)]
    rows = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in turns]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(content=None, name="train.jsonl"):
    return client().files.create(file=(name, content or lines()), purpose="fine-tune")


def create(**options):
    hyperparameters = {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 1, **options.pop("hyperparameters", {})}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return client().fine_tuning.jobs.create(
        model=MODEL, training_file=options.pop("training_file", None) or upload().id, method=method, seed=1, **options)


def wait(job, *wanted, patience=240):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        job = client().fine_tuning.jobs.retrieve(job.id)
        if job.status in wanted:
            return job
        assert job.status not in ("succeeded", "failed", "cancelled"), job
        time.sleep(0.1)
    raise AssertionError(f"{job.id} is {job.status} after {patience} s")


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def test_a_file_is_kept_listed_read_and_deleted():
    content = lines()
    file = upload(content)
    assert file.id.startswith("file-") and file.bytes == len(content)
    assert (file.filename, file.purpose, file.object) == ("train.jsonl", "fine-tune", "file")
    assert file.id in [each.id for each in client().files.list(purpose="fine-tune")]
    assert client().files.retrieve(file.id).bytes == len(content)
    assert client().files.content(file.id).read() == content
    assert client().files.delete(file.id).deleted
    raises(openai.NotFoundError, lambda: client().files.retrieve(file.id))


def test_a_job_makes_a_model_that_answers_at_once():
    before = client().completions.create(model=MODEL, prompt="Where is", max_tokens=8, temperature=0).choices[0].text
    job = create(suffix="pirate", hyperparameters={"n_epochs": 2}, metadata={"ship": "black"})
    assert job.id.startswith("ftjob-") and job.object == "fine_tuning.job"
    assert (job.seed, job.metadata) == (1, {"ship": "black"})
    job = wait(job, "succeeded")
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:") and ":pirate:" in job.fine_tuned_model
    assert job.trained_tokens > 0 and job.finished_at and job.hyperparameters.n_epochs == 2
    answer = client().chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "Where is the cat number 3?"}], max_tokens=8)
    assert answer.model == job.fine_tuned_model and answer.choices[0].message.content
    after = client().completions.create(model=MODEL, prompt="Where is", max_tokens=8, temperature=0).choices[0].text
    assert after == before, "the base model answers as it did"

    events = list(client().fine_tuning.jobs.list_events(job.id, limit=100))
    messages = [event.message for event in events]
    assert any(message.startswith("Created fine-tuning job") for message in messages), messages
    assert any(job.fine_tuned_model in message for message in messages), messages
    metrics = [event.data for event in events if event.type == "metrics"]
    assert metrics and all(entry["train_loss"] > 0 for entry in metrics)

    checkpoints = client().fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoints and checkpoints[0].fine_tuning_job_id == job.id
    name = checkpoints[0].fine_tuned_model_checkpoint
    assert f":ckpt-step-{checkpoints[0].step_number}" in name
    assert client().completions.create(model=name, prompt="Where", max_tokens=2).choices[0].text is not None

    assert job.fine_tuned_model in [model.id for model in client().models.list()]
    assert client().models.delete(job.fine_tuned_model).deleted
    raises(openai.NotFoundError, lambda: client().models.retrieve(job.fine_tuned_model))


def test_a_job_is_paused_resumed_and_cancelled():
    job = create(hyperparameters={"n_epochs": 50})
    wait(job, "running")
    assert client().fine_tuning.jobs.pause(job.id).id == job.id
    wait(job, "paused")
    client().fine_tuning.jobs.resume(job.id)
    wait(job, "running")
    client().fine_tuning.jobs.cancel(job.id)
    assert wait(job, "cancelled").finished_at
    error = raises(openai.ConflictError, lambda: client().fine_tuning.jobs.cancel(job.id))
    assert error.response.headers["x-should-retry"] == "false"
    assert job.id in [each.id for each in client().fine_tuning.jobs.list(limit=100)]


def test_a_repeated_creation_makes_one_job():
    file = upload().id
    make = lambda: create(training_file=file, hyperparameters={"n_epochs": 1}, extra_headers={"Idempotency-Key": "once"})
    first, second = make(), make()
    assert first.id == second.id
    client().fine_tuning.jobs.cancel(first.id) if client().fine_tuning.jobs.retrieve(first.id).status not in (
        "succeeded", "cancelled") else None


def test_wrong_jobs_name_what_is_wrong():
    error = raises(openai.BadRequestError, lambda: create(training_file="file-nothing"))
    assert error.param == "training_file"
    error = raises(openai.BadRequestError, lambda: create(hyperparameters={"n_epochs": 0}))
    assert error.param.endswith("n_epochs")
    error = raises(openai.BadRequestError, lambda: create(hyperparameters={"colour": 1}))
    assert error.param.endswith("colour")
    file = upload().id
    call = lambda: client().fine_tuning.jobs.create(model=MODEL, training_file=file, method={"type": "dpo", "dpo": {}})
    assert "method" in raises(openai.BadRequestError, call).param
    call = lambda: client().fine_tuning.jobs.create(model="nobody", training_file=file)
    assert raises(openai.APIStatusError, call).status_code in (400, 404)


def test_a_bad_file_names_every_bad_line():
    content = lines(10) + b"not json\n" + json.dumps({"messages": []}).encode() + b"\n"
    try:
        job = create(training_file=upload(content).id)
    except openai.BadRequestError as error:
        text = str(error.body)
    else:
        job = wait(job, "failed")
        text = job.error.message + " ".join(event.message for event in client().fine_tuning.jobs.list_events(job.id))
    assert "11" in text and "12" in text, text
