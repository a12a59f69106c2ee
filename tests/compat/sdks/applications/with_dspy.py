"""dspy with litellm as its engine."""

import os

from weather import KEY, ORIGIN

# Otherwise litellm asks for a list of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import dspy

lm = dspy.LM("openai/m", api_base=f"{ORIGIN}/v1", api_key=KEY, cache=False, num_retries=0, engine="litellm")
predict = dspy.Predict("question -> answer")


def chat(prompt):
    with dspy.context(lm=lm):
        return predict(question=prompt).answer


async def chat_async(prompt):
    with dspy.context(lm=lm):
        return (await predict.acall(question=prompt)).answer
