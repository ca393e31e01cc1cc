"""A small LLaVA learns to say what pictures show: training data, training and serving with pictures, together."""
import json
import pathlib
import tempfile

import openai

import seeing
import server
from test_convert import convert
from test_crash import finished, newest_step, wait, weights
from test_fine_tuning import client_of, until, upload

TRAINED, HELD_OUT = 3600, 240
SETTINGS = {"n_epochs": 2, "batch_size": 16, "learning_rate": 2e-3, "lr_scheduler": "cosine", "warmup_steps": 20}
ADAPTER = {"r": 32, "modules_to_save": ["multi_modal_projector"]}


def answer(client, model, content):
    message = content if isinstance(content, dict) else {"role": "user", "content": content}
    done = client.chat.completions.create(model=model, messages=[message], temperature=0, max_tokens=16)
    return done.choices[0].message.content.strip()


def train(client, rows, **hyperparameters):
    file = upload(client, rows).id
    job = client.fine_tuning.jobs.create(
        model="llava", training_file=file, seed=1,
        extra_body={"hyperparameters": hyperparameters, "lora": ADAPTER})
    return until(client, job, lambda job: job.status == "succeeded")


def test_a_small_llava_tells_held_out_pictures():
    with tempfile.TemporaryDirectory() as folder:
        model = seeing.write_model(pathlib.Path(folder, "llava"))
        with server.running("--model", f"llava={model}") as running:
            client = client_of(running)
            name = train(client, seeing.lines(TRAINED, 1), **SETTINGS).fine_tuned_model
            right, base = 0, 0
            for picture, caption in seeing.cases(HELD_OUT, 2):
                right += answer(client, name, seeing.asked(picture)) == caption
            for picture, caption in seeing.cases(24, 2):
                base += answer(client, "llava", seeing.asked(picture)) == caption
            print(f"      {right} of {HELD_OUT} held-out pictures")
            assert right > 0.95 * HELD_OUT and base == 0, (right, base)


def said(client, model):
    """The tokens said of a picture, each with its log-probability."""
    (picture, _), = seeing.cases(1, 3)
    done = client.chat.completions.create(
        model=model, messages=[seeing.asked(picture)], temperature=0, max_tokens=12, logprobs=True)
    return [(token.token, token.logprob) for token in done.choices[0].logprobs.content]


def apart(found, expected):
    """How far the log-probabilities of the same tokens are apart, at most."""
    assert [token for token, _ in found] == [token for token, _ in expected], (found, expected)
    return max(abs(x - y) for (_, x), (_, y) in zip(found, expected))


def test_an_adapter_merged_into_a_llava_says_the_same_of_a_picture():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = seeing.write_model(folder / "llava")
        with server.running("--model", f"llava={model}", data=folder / "data") as running:
            client = client_of(running)
            name = train(client, seeing.lines(480, 1), **SETTINGS | {"n_epochs": 1}).fine_tuned_model
            trained, base = said(client, name), said(client, "llava")
            assert [token for token, _ in trained] != [token for token, _ in base], trained
            _, row = server.request(f"{running.url}/v1/adapters/{name}")
        adapter = folder / "data" / "artifacts" / "adapters" / row["sha256"]

        alone = convert(model, "--adapter", adapter, "--out", folder / "merged.gguf", "--type", "f32")
        assert "top-1 agreement 100.0 %" in alone and "mmproj-merged.gguf" in alone, alone
        exact = convert(model, "--adapter", adapter, "--out", folder / "f32", "--type", "f32")
        assert "top-1 agreement 100.0 %" in exact, exact
        convert(model, "--adapter", adapter, "--out", folder / "bf16")
        with server.running(*(f"--model={kind}={folder / kind}" for kind in ["f32", "bf16"])) as running:
            client = client_of(running)
            assert apart(said(client, "f32"), trained) < 1e-3
            assert apart(said(client, "bf16"), trained) < 0.1


def test_a_killed_job_with_pictures_ends_with_the_same_weights():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = seeing.write_model(folder / "llava")
        ends = {}
        for kind in ["calm", "stormy"]:
            run = server.Server(folder / kind, "--model", f"llava={model}").wait_until_ready()
            try:
                file = upload(client_of(run), seeing.lines(48, 1)).id
                hyperparameters = {"max_steps": 30, "batch_size": 4, "checkpoint_steps": 5}
                job = {"model": "llava", "training_file": file, "seed": 7, "hyperparameters": hyperparameters,
                       "lora": {"dropout": 0.1, **ADAPTER}}
                status, job = server.request(run.url + "/v1/fine_tuning/jobs", job)
                assert status == 200, job
                if kind == "stormy":
                    wait(lambda: newest_step(run.url, job["id"]) >= 10, "the second checkpoint")
                    run.kill()
                    run = server.Server(folder / kind, "--model", f"llava={model}").wait_until_ready()
                finished(run.url, job["id"])
                ends[kind] = weights(run.data)
            finally:
                run.kill()
        assert len(ends["calm"]) == 6 and ends["calm"] == ends["stormy"], ends


def test_pictures_of_training_data_are_refused_by_line_and_place():
    with tempfile.TemporaryDirectory() as folder:
        model = seeing.write_model(pathlib.Path(folder, "llava"))
        good = list(seeing.lines(2, 1))
        bad = json.loads(json.dumps(good[0]))
        bad["messages"][0]["content"][0]["image_url"]["url"] = "https://example.org/a.png"
        with server.running("--model", f"llava={model}", "--model", "demo") as running:
            client = client_of(running)
            try:
                upload(client, [*good, bad])
                raise AssertionError("a picture elsewhere was accepted")
            except openai.BadRequestError as error:
                (found,) = error.body["errors"]
                assert found["line"] == 3 and "not fetched" in found["reason"], found
                assert found["path"] == "$.messages[0].content[0].image_url.url", found
            file = upload(client, good).id
            job = client.fine_tuning.jobs.create(model="demo", training_file=file)
            status, words = outcome(client, job)
            assert status == "failed" and "image_url" in words, words
            blind = upload(client, [{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}])
            job = client.fine_tuning.jobs.create(model="llava", training_file=blind.id, extra_body={"lora": ADAPTER})
            status, words = outcome(client, job)
            assert status == "failed" and "learns from pictures" in words, words


def outcome(client, job):
    look = lambda: client.fine_tuning.jobs.retrieve(job.id)
    wait(lambda: look().status in ("failed", "succeeded", "cancelled"), "the job to end")
    return look().status, look().error.message
