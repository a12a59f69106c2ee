"""requests as an application itself uses it."""

import json

import requests
from weather import ORIGIN

URL = f"{ORIGIN}/v1/chat/completions"


def asked(prompt, **more):
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0, **more}


def chat(prompt):
    response = requests.post(URL, json=asked(prompt), timeout=10)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]


def chat_streamed(prompt):
    with requests.post(URL, json=asked(prompt, stream=True), stream=True, timeout=10) as response:
        response.raise_for_status()
        lines = [line.decode().removeprefix("data: ") for line in response.iter_lines() if line]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
