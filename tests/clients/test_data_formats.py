"""Training files in each format, as a client sends them: read, trained on, and refused line by line."""
import json

import server
from test_crash import finished

QUESTIONS = [f"What is in box {number}?" for number in "one two three four five six".split()]
# What a file of each format holds for one question, and how the server calls the format.
FORMATS = {
    "messages": lambda text: {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "A hat."}]},
    "prompt_completion": lambda text: {"prompt": text, "completion": " A hat."},
    "alpaca": lambda text: {"instruction": "Answer.", "input": text, "output": "A hat."},
    "sharegpt": lambda text: {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "A hat."}]},
    "text": lambda text: {"text": text + " A hat."},
    "tokenized": lambda text: {"input_ids": [70, 71, 72 + len(text), 73], "labels": [-100, -100, 72 + len(text), 73]},
}


def upload(url, lines, name="data.jsonl"):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    body = (
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n{text}\r\n--b--\r\n'
    ).encode()
    return server.request(url + "/v1/files", body, headers={"Content-Type": "multipart/form-data; boundary=b"})


def test_each_format_is_trained_on():
    with server.running() as running:
        jobs = {}
        for name, line in FORMATS.items():
            status, file = upload(running.url, [line(question) for question in QUESTIONS], name + ".jsonl")
            assert status == 200, (name, file)
            hyperparameters = {"max_steps": 2, "batch_size": 3}
            body = {"model": "demo", "training_file": file["id"], "hyperparameters": hyperparameters}
            status, job = server.request(running.url + "/v1/fine_tuning/jobs", body)
            assert status == 200, (name, job)
            jobs[name] = job["id"]
        for name, job in jobs.items():
            done = finished(running.url, job)
            assert done["trained_tokens"] > 0 and done["step"] == 2, (name, done)
            ask = {"model": done["fine_tuned_model"], "prompt": "Hello", "max_tokens": 2}
            assert server.request(running.url + "/v1/completions", ask)[0] == 200, name
        # Only the labels that are no -100 count, in every epoch anew.
        assert done["trained_tokens"] == 2 * 3 * 2, done["trained_tokens"]


# A file in each format with lines that cannot be: the line, where in it, and a word of the reason.
BAD = {
    "messages": [
        ('{"messages": [', "$", "JSON"),
        ({"messages": []}, "$.messages", "empty"),
        ({"messages": [{"role": "wizard", "content": "x"}, {"role": "assistant", "content": "y"}]}, "$.messages[0].role", "wizard"),
        ({"messages": [{"role": "user", "content": "x"}]}, "$", "assistant"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 3}]},
         "$.messages[1].weight", "0 or 1"),
        ({"prompt": "x", "completion": "y"}, "$", "prompt_completion"),
    ],
    "prompt_completion": [
        ({"prompt": "x"}, "$", "`completion` is missing"),
        ({"prompt": 1, "completion": "y"}, "$.prompt", "string"),
        ("[1, 2]", "$", "array"),
    ],
    "alpaca": [
        ({"instruction": "x"}, "$", "`output` is missing"),
        ({"instruction": "x", "output": 7}, "$.output", "string"),
    ],
    "sharegpt": [
        ({"conversations": "x"}, "$.conversations", "list"),
        ({"conversations": [{"from": "nobody", "value": "x"}, {"from": "gpt", "value": "y"}]}, "$.conversations[0].from", "nobody"),
        ({"conversations": [{"from": "human", "value": 5}, {"from": "gpt", "value": "y"}]}, "$.conversations[0]", "strings"),
    ],
    "text": [({"text": 5}, "$.text", "string"), ({"words": "x"}, "$", "words")],
    "tokenized": [
        ({"input_ids": [70, 71], "labels": [70]}, "$.labels", "1"),
        ({"input_ids": [70, -3], "labels": [70, -3]}, "$.input_ids[1]", "-3"),
        ({"input_ids": "x", "labels": [70]}, "$.input_ids", "list"),
    ],
}


def test_every_bad_line_is_named_with_its_place_and_reason():
    with server.running() as running:
        for name, bad in BAD.items():
            good = [FORMATS[name](question) for question in QUESTIONS]
            # Good lines first, between and after, and an empty one, which is counted and skipped.
            lines, expected = [good[0], ""], []
            for number, (line, path, word) in enumerate(bad):
                lines += [line, good[number % len(good)]]
                expected.append((len(lines) - 1, path, word))
            status, answer = upload(running.url, lines)
            assert status == 400, (name, answer)
            error = answer["error"]
            assert (error["code"], error["param"]) == ("invalid_training_file", "file"), error
            found = [(entry["line"], entry["path"], entry["reason"]) for entry in error["errors"]]
            assert [entry[:2] for entry in found] == [entry[:2] for entry in expected], (name, found)
            for (_, _, reason), (_, _, word) in zip(found, expected):
                assert word in reason, (name, reason, word)
            for line, path, reason in found:
                assert f"line {line}, {path}: {reason}" in error["message"], error["message"]
        status, files = server.request(running.url + "/v1/files")
        assert files["data"] == [], "a refused file was kept"
