"""The unmodified `openai` client against the real server with its demo model: completions, chat,
models, and errors as the client's exceptions."""
import atexit
import contextlib
import functools

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


def complete(prompt="Once upon a time", **options):
    return client().completions.create(model=MODEL, prompt=prompt, temperature=0, **options)


def chat(*turns, **options):
    messages = [{"role": role, "content": content} for role, content in turns or [("user", "Hello!")]]
    return client().chat.completions.create(model=MODEL, messages=messages, temperature=0, **options)


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def tokens(text, add_special_tokens=True):
    body = {"model": MODEL, "prompt": text, "add_special_tokens": add_special_tokens}
    status, answer = server.request(running().url + "/tokenize", body)
    assert status == 200, answer
    return answer["tokens"]


def test_a_text_is_continued_and_counted():
    answer = complete(max_tokens=8)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].text
    assert answer.usage.prompt_tokens == len(tokens("Once upon a time"))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint.startswith("fp_")


def test_prompts_come_as_lists_of_strings_and_of_tokens():
    alone = [complete(prompt, max_tokens=6).choices[0].text for prompt in ("The cat", "A dog")]
    together = complete(["The cat", "A dog"], max_tokens=6)
    assert [choice.text for choice in together.choices] == alone
    assert [choice.index for choice in together.choices] == [0, 1]
    ids = tokens("The cat")
    assert complete(ids, max_tokens=6).choices[0].text == alone[0]
    lists = complete([ids, tokens("A dog")], max_tokens=6)
    assert [choice.text for choice in lists.choices] == alone


def test_echo_with_logprobs_and_no_tokens_scores_a_text():
    text = "The cat sat on the mat."
    choice = complete(text, echo=True, logprobs=2, max_tokens=0).choices[0]
    assert choice.text == text and choice.finish_reason == "length"
    scored = choice.logprobs
    assert len(scored.tokens) == len(tokens(text))
    assert scored.token_logprobs[0] is None and scored.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in scored.token_logprobs[1:])
    assert all(len(top) >= 2 for top in scored.top_logprobs[1:])
    assert scored.text_offset == sorted(scored.text_offset)


def test_scores_agree_with_the_tokens_that_are_drawn():
    drawn = complete(max_tokens=6, logprobs=0, extra_body={"return_token_ids": True}).choices[0]
    ids = tokens("Once upon a time") + drawn.token_ids
    scored = complete(ids, echo=True, logprobs=0, max_tokens=0).choices[0].logprobs
    tail = scored.token_logprobs[-len(drawn.token_ids):]
    assert all(abs(a - b) < 2e-3 for a, b in zip(tail, drawn.logprobs.token_logprobs)), (tail, drawn)


def test_several_choices_and_the_best_of_more():
    answer = client().completions.create(model=MODEL, prompt="One day", n=3, max_tokens=8, temperature=1, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    again = client().completions.create(model=MODEL, prompt="One day", n=3, max_tokens=8, temperature=1, seed=7)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]
    best = client().completions.create(
        model=MODEL, prompt="One day", n=1, best_of=4, max_tokens=8, temperature=1, logprobs=0, seed=7)
    assert len(best.choices) == 1
    assert best.usage.completion_tokens > len(best.choices[0].logprobs.tokens)


def test_a_stream_says_the_same_and_ends_with_the_usage():
    whole = complete(max_tokens=12)
    chunks = list(complete(max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and set(reasons[:-1]) == {None}


def test_a_stop_string_is_not_part_of_the_answer():
    whole = complete(max_tokens=24).choices[0].text
    stop = whole[len(whole) // 2:][:3]
    choice = complete(max_tokens=24, stop=[stop]).choices[0]
    assert choice.finish_reason == "stop" and choice.text == whole[:whole.index(stop)]


def test_a_conversation_is_answered():
    answer = chat(max_completion_tokens=16)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and choice.message.role == "assistant"
    assert choice.message.content and choice.finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    cached = chat(max_completion_tokens=16).usage.prompt_tokens_details.cached_tokens
    assert cached <= answer.usage.prompt_tokens


def test_a_conversation_is_streamed():
    whole = chat(max_tokens=16).choices[0]
    chunks = list(chat(max_tokens=16, stream=True, stream_options={"include_usage": True}))
    first = chunks[0].choices[0].delta
    assert first.role == "assistant" and first.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.message.content
    assert chunks[-2].choices[0].finish_reason == whole.finish_reason
    assert chunks[-1].usage.total_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_logprobs_spell_the_answer():
    choice = chat(max_tokens=12, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert bytes(byte for token in content for byte in token.bytes).decode(errors="replace").startswith(
        choice.message.content)
    assert all(len(token.top_logprobs) == 3 for token in content)
    assert all(abs(token.top_logprobs[0].logprob - token.logprob) < 1e-6 for token in content)


def test_models_are_listed_retrieved_and_protected():
    assert MODEL in [model.id for model in client().models.list()]
    assert client().models.retrieve(MODEL).object == "model"
    raises(openai.NotFoundError, lambda: client().models.retrieve("ft:demo:org:nothing:abc"))
    raises(openai.NotFoundError, lambda: client().models.delete("org/nothing"))
    raises(openai.BadRequestError, lambda: client().models.delete(MODEL))


def test_errors_are_the_client_s_exceptions():
    error = raises(openai.NotFoundError, lambda: client().completions.create(model="nobody", prompt="x"))
    assert error.code == "model_not_found" and error.param == "model"
    error = raises(openai.BadRequestError, lambda: complete(max_tokens=10**7))
    assert error.code == "context_length_exceeded"
    error = raises(openai.BadRequestError, lambda: chat(response_format={"type": "json_object"}))
    assert error.code == "unsupported_parameter" and error.param == "response_format"
    error = raises(openai.BadRequestError, lambda: complete(suffix="the end"))
    assert error.param == "suffix"
    error = raises(openai.BadRequestError, lambda: complete(extra_body={"colour": "blue"}))
    assert error.param == "colour"
    error = raises(openai.BadRequestError, lambda: complete(n=3, best_of=2))
    assert error.param == "best_of"
    assert error.request_id


def test_keys_are_checked():
    with server.running("--api-key", "sk-the-right-one-for-this") as locked:
        url = locked.url + "/v1"
        wrong = openai.OpenAI(base_url=url, api_key="sk-the-wrong-one-for-this", max_retries=0)
        error = raises(openai.AuthenticationError, wrong.models.list)
        assert error.code == "invalid_api_key"
        assert MODEL in [model.id for model in openai.OpenAI(base_url=url, api_key="sk-the-right-one-for-this").models.list()]
