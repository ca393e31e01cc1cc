"""A server with too much to do, and one that is about to leave: what callers hear, and what goes on."""
import concurrent.futures
import json
import signal
import time
import urllib.error
import urllib.request

import server


def post(url, body):
    call = urllib.request.Request(
        url + "/v1/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    return urllib.request.urlopen(call, timeout=120)


def answered(url, body):
    """(status, headers, body) of one request."""
    try:
        with post(url, body) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def long_answer(**more):
    return {"model": "demo", "prompt": "Once", "max_tokens": 500, "ignore_eos": True, "speculative": False, **more}


def test_a_full_queue_says_when_to_come_again():
    with server.running("--max-sequences", "1", "--max-waiting", "2") as running:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda seed: answered(running.url, long_answer(seed=seed)), range(16)))
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429}, statuses
        for status, headers, body in answers:
            if status == 200:
                assert body["usage"]["completion_tokens"] == 500, body
                continue
            assert 1 <= int(headers["Retry-After"]) <= 60, dict(headers)
            assert body["error"]["code"] == "server_overloaded" and body["error"]["type"] == "rate_limit_error", body
            assert set(body["error"]) == {"message", "type", "param", "code"}, body
        assert answered(running.url, long_answer())[0] == 200, "once there is room it serves again"


def test_a_server_told_to_stop_ends_what_it_began_and_takes_nothing_new():
    with server.running() as running:
        stream = post(running.url, long_answer(n=24, stream=True, max_tokens=400))
        assert stream.readline().startswith(b"data: ")
        running.process.send_signal(signal.SIGTERM)
        deadline, refused = time.monotonic() + 5, None
        while refused is None and time.monotonic() < deadline:
            status, headers, body = answered(running.url, long_answer(max_tokens=1))
            refused = (headers, body) if status == 503 else None
        assert refused, "new requests were taken after the signal"
        headers, body = refused
        assert body["error"]["code"] == "server_shutting_down" and int(headers["Retry-After"]) >= 1, body
        assert server.request(running.url + "/health/ready") == (503, {"status": "draining"})
        assert server.request(running.url + "/health/live")[0] == 200

        frames = [line[6:] for line in stream.read().decode().splitlines() if line.startswith("data: ")]
        assert frames[-1] == "[DONE]", frames[-2:]
        choices = [choice for frame in frames[:-1] for choice in json.loads(frame)["choices"]]
        ends = [choice["index"] for choice in choices if choice["finish_reason"] == "length"]
        assert sorted(ends) == list(range(24)), ends
        assert running.process.wait(timeout=30) == 0
