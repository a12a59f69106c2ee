"""dspy with its own client."""

import os

from weather import KEY, ORIGIN

# Otherwise litellm, which it imports, asks for a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import dspy

lm = dspy.LM("openai/m", api_base=f"{ORIGIN}/v1", api_key=KEY, cache=False, num_retries=0)
predict = dspy.Predict("question -> answer")


def chat(prompt):
    with dspy.context(lm=lm):
        return predict(question=prompt).answer
