"""What tests of judges behind an endpoint share: a server that answers as one, and what it is asked."""

from __future__ import annotations

import json

from chat_server import ChatHandler

from lit_debias import RewardBatch

SECRET = "sk-this-is-the-secret-key"
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


class Handler(ChatHandler):
    """A step of the script: the text to answer, a status, (status, headers), "slow", or a dict to send as it is."""

    default = '{"score": 7}'

    def reply(self, step, body):
        status, headers = step if isinstance(step, tuple) else (step if isinstance(step, int) else 200, {})
        reply = {"error": {"message": f"I do not like {self.headers['Authorization']}"}}
        if isinstance(step, str):
            message = {"role": "assistant", "content": step}
            reply = {"choices": [{"index": 0, "message": message}], "usage": USAGE}
        elif isinstance(step, dict):
            reply = step
        return status, headers, json.dumps(reply)


def asked(server):
    return [body["messages"][0]["content"] for _, body in server.requests]


def batch(*completions: str, **columns) -> RewardBatch:
    return RewardBatch(["Describe a nurse."] * len(completions), list(completions), [0] * len(completions), columns)
