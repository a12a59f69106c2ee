"""langchain-aws."""

from botocore.config import Config
from langchain_aws import ChatBedrockConverse
from weather import ORIGIN

model = ChatBedrockConverse(
    model="anthropic.m-1:0",
    endpoint_url=ORIGIN,
    region_name="us-east-1",
    aws_access_key_id="an-access-key",
    aws_secret_access_key="a-secret-key",
    disable_streaming=False,  # it streams only from models that it knows
    config=Config(retries={"total_max_attempts": 1}),
)


def converse(prompt):
    return model.invoke(prompt).text


def converse_streamed(prompt):
    return "".join(chunk.text for chunk in model.stream(prompt))
