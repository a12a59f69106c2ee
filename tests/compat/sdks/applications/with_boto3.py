"""boto3, whose requests go over urllib3."""

import json

import boto3
from botocore.config import Config
from weather import ORIGIN, PARAMETERS, weather

client = boto3.client(
    "bedrock-runtime",
    endpoint_url=ORIGIN,
    region_name="us-east-1",
    aws_access_key_id="an-access-key",
    aws_secret_access_key="a-secret-key",
    config=Config(retries={"total_max_attempts": 1}),
)
MODEL = "anthropic.m-1:0"


def asked(prompt):
    messages = [{"role": "user", "content": [{"text": prompt}]}]
    return {"modelId": MODEL, "messages": messages, "inferenceConfig": {"temperature": 0}}


def body(prompt):
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 100, "messages": messages})


def converse(prompt):
    return client.converse(**asked(prompt))["output"]["message"]["content"][0]["text"]


def converse_streamed(prompt):
    events = client.converse_stream(**asked(prompt))["stream"]
    return "".join(event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event)


def converse_tools(prompt):
    tool = {"name": "weather", "description": weather.__doc__, "inputSchema": {"json": PARAMETERS}}
    request = {**asked(prompt), "toolConfig": {"tools": [{"toolSpec": tool}]}}
    while True:
        response = client.converse(**request)
        message = response["output"]["message"]
        if response["stopReason"] != "tool_use":
            return message["content"][0]["text"]
        results = [
            {
                "toolResult": {
                    "toolUseId": block["toolUse"]["toolUseId"],
                    "content": [{"text": weather(**block["toolUse"]["input"])}],
                }
            }
            for block in message["content"]
        ]
        request["messages"] = [*request["messages"], message, {"role": "user", "content": results}]


def invoke(prompt):
    response = client.invoke_model(modelId=MODEL, body=body(prompt))
    return json.loads(response["body"].read())["content"][0]["text"]


def invoke_streamed(prompt):
    stream = client.invoke_model_with_response_stream(modelId=MODEL, body=body(prompt))["body"]
    events = [json.loads(event["chunk"]["bytes"]) for event in stream]
    return "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
